"""A Prometheus server with given scrape targets, and its query API."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import yaml

from harness.errors import HarnessError
from harness.program import DIRECT, Program
from harness.prometheus.programs import find

Series = dict[str, Any]
"""An entry of a ``result`` as the API returns it: ``metric``, and ``value`` or ``values``."""

_NAMESPACE = {"namespace": "samserve"}
_QUERY_TIMEOUT_S = 30.0


class PrometheusServer(Program):
    """A real Prometheus on loopback; without `history` its storage is empty and temporary."""

    _name: ClassVar[str] = "prometheus"
    _ready_path: ClassVar[str] = "/-/ready"

    history: Path | None = None
    """Folder with the blocks of a history; to be set before the start."""

    def __init__(
        self,
        targets: Mapping[str, Sequence[str]],
        *,
        rules: Sequence[Path] = (),
        labels: Mapping[str, str] = _NAMESPACE,
        interval_s: float = 1.0,
        port: int = 0,
        log: Path | None = None,
    ) -> None:
        """Configure the server, without starting it.

        ``targets`` are ``host:port`` by job, all with the given ``labels``.  ``interval_s`` is the
        scrape interval, and the evaluation interval of rules that do not define one.
        """
        super().__init__(port=port, log=log)
        self._jobs = {job: list(addresses) for job, addresses in targets.items()}
        self._rules = [str(path.absolute()) for path in rules]
        self._labels = dict(labels)
        self._interval = f"{round(interval_s * 1000)}ms"

    def query(self, expr: str, time: float | None = None) -> list[Series]:
        """Evaluate an expression at one time, in seconds since the epoch; None is now.

        Raises `HarnessError`, like the other methods, with the error text of Prometheus.
        """
        at = {} if time is None else {"time": str(time)}
        return cast("list[Series]", self._get("query", {"query": expr, **at})["result"])

    def query_range(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """Evaluate an expression from ``start`` to ``end``, every ``step`` seconds."""
        when = {"start": str(start), "end": str(end), "step": str(step)}
        data = self._get("query_range", {"query": expr, **when})
        return cast("list[Series]", data["result"])

    def series(self, match: str) -> list[dict[str, str]]:
        """Return the labels of all series that match the selector."""
        return cast("list[dict[str, str]]", self._get("series", {"match[]": match}))

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that are pending or firing."""
        return cast("list[dict[str, Any]]", self._get("alerts")["alerts"])

    def rules(self) -> list[dict[str, Any]]:
        """Return the rules of all groups, with their ``health`` and ``lastError``."""
        return [rule for group in self._get("rules")["groups"] for rule in group["rules"]]

    def exemplars(self, expr: str, start: float, end: float) -> list[dict[str, Any]]:
        """Return the exemplars of the series that an expression selects, by series."""
        parameters = {"query": expr, "start": str(start), "end": str(end)}
        return cast("list[dict[str, Any]]", self._get("query_exemplars", parameters))

    def _command(self, folder: Path) -> list[str]:
        path = folder / "prometheus.yml"
        path.write_text(yaml.safe_dump(self._configuration()), encoding="utf-8")
        return [
            find(self._name),
            f"--config.file={path}",
            f"--web.listen-address={self.address}",
            f"--storage.tsdb.path={self.history or folder / 'data'}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]

    def _configuration(self) -> dict[str, Any]:
        return {
            "global": {
                "scrape_interval": self._interval,
                "scrape_timeout": self._interval,
                "evaluation_interval": self._interval,
            },
            "rule_files": self._rules,
            "scrape_configs": [
                {
                    "job_name": job,
                    "static_configs": [{"targets": addresses, "labels": self._labels}],
                }
                for job, addresses in self._jobs.items()
            ],
        }

    def _get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """Return the ``data`` of one response of the API."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters or {})}"
        try:
            with DIRECT.open(url, timeout=_QUERY_TIMEOUT_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise HarnessError(f"{error}: {error.read().decode(errors='replace')}") from error
        except OSError as error:
            raise HarnessError(f"Prometheus does not respond on {self.url}: {error}") from error
