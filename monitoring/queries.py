"""What the dashboards ask Prometheus, read from the files that Grafana gets."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHOICES = ("namespace", "release", "model", "method")
"""What a viewer may choose at the top of a page."""
FOLDER = Path(__file__).parents[1] / "helm" / "samserve" / "files" / "dashboards"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel, with Grafana's variables in it, see `substitute`.

    ``dashboard`` is the title of the page, ``legend`` names its series, ``is_instant`` tells that
    only the newest values are shown.
    """

    dashboard: str
    panel: str
    expr: str
    legend: str
    is_instant: bool

    @property
    def looks_back(self) -> bool:
        """Whether it compares with another time, and so is empty until there is a history."""
        return " offset " in self.expr


def dashboards(folder: Path = FOLDER) -> Iterator[dict[str, Any]]:
    """Yield all dashboards as Grafana reads them."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def panels(dashboard: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the panels of a dashboard that show something, also those in rows that are closed."""
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            yield from panel["panels"]
        else:
            yield panel


def queries(folder: Path = FOLDER) -> Iterator[Query]:
    """Yield what all panels ask."""
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
    """Put values in the place of Grafana's variables, as it does; *window* is the time shown.

    *chosen* are values by the name of a choice; what is not among them has what a viewer sees who
    chooses nothing.  Raises `ValueError` for a variable that no dashboard has.
    """
    values = dict.fromkeys(CHOICES, ".*") | {
        **chosen,
        "__rate_interval": rate_interval,
        "__range": window,
        "__interval": rate_interval,
    }

    def value(match: re.Match[str]) -> str:
        name = match["plain"] or match["braced"]
        # "$1" is a group of label_replace, and Grafana leaves it alone.
        if name.isdigit():
            return match[0]
        if name not in values:
            raise ValueError(f"no variable {name!r}")
        return values[name]

    return re.sub(r"\$(?:(?P<plain>\w+)|\{(?P<braced>\w+)(?::\w+)?\})", value, expr)
