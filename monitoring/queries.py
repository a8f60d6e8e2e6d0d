"""The Prometheus queries of the dashboards, read from the generated Grafana files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLES = ("namespace", "release", "model", "method")
"""Variables that a viewer may set at the top of a dashboard."""
FOLDER = Path(__file__).parents[1] / "helm" / "samserve" / "files" / "dashboards"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel, with Grafana's variables in it, see `substitute`.

    ``dashboard`` is the title of the dashboard, ``legend`` names its series, ``is_instant`` is true
    if only the latest values are shown.
    """

    dashboard: str
    panel: str
    expr: str
    legend: str
    is_instant: bool

    @property
    def uses_offset(self) -> bool:
        """Whether it compares with another time, and so is empty until there is a history."""
        return " offset " in self.expr


def dashboards(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Yield all dashboards as Grafana reads them."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard that contain data, including those in collapsed rows."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(folder: Path = FOLDER) -> Iterator[Query]:
    """Yield the queries of all panels."""
    for dashboard in dashboards(folder):
        for panel in panels(dashboard):
            for target in panel["targets"]:
                yield Query(
                    dashboard=dashboard["title"],
                    panel=panel["title"],
                    expr=target["expr"],
                    legend=target["legendFormat"],
                    is_instant=target.get("instant", False),
                )


def substitute(expr: str, *, rate_interval: str = "15s", window: str = "1h", **chosen: str) -> str:
    """Replace Grafana's variables with values, as Grafana does; *window* is the time range.

    *chosen* are values by the name of the variable; all others get the value of "All".  Raises
    `ValueError` for a variable that no dashboard has.
    """
    values = dict.fromkeys(VARIABLES, ".*") | {
        **chosen,
        "__rate_interval": rate_interval,
        "__range": window,
        "__interval": rate_interval,
    }

    def value(match: re.Match[str]) -> str:
        name = match["plain"] or match["braced"]
        # "$1" is a group of label_replace, which Grafana does not replace.
        if name.isdigit():
            return match[0]
        if name not in values:
            raise ValueError(f"no variable {name!r}")
        return values[name]

    return re.sub(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::\w+)?\})", value, expr)
