"""The content of a dashboard, independent of Grafana's format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

GREEN, YELLOW, ORANGE, RED, GREY = "green", "yellow", "orange", "red", "#8e8e8e"

Thresholds = Sequence[tuple[float, str]]
"""Values, and the color from each value on."""


class Kind(Enum):
    """The visualization of a panel."""

    LINES = "lines"
    STACK = "stack"
    STAT = "stat"
    BARS = "bars"
    TABLE = "table"
    HEATMAP = "heatmap"
    STATES = "states"


INSTANT_KINDS = (Kind.STAT, Kind.BARS, Kind.TABLE)
"""Kinds that show the latest values only."""


@dataclass(frozen=True, slots=True)
class Query:
    """A Prometheus expression and the legend of its series.

    Without a ``legend`` the series have the names of the labels that the expression groups by.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False

    @property
    def legend_format(self) -> str:
        """The legend in Grafana's format."""
        grouped = re.search(r" by \((?:le, )?([\w, ]+)\)", self.expr)
        labels = grouped[1].split(", ") if grouped else []
        return self.legend or " ".join(f"{{{{{label}}}}}" for label in labels)


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel with one or several queries.

    ``width`` and ``height`` are those of its row unless given.  ``description`` says how to read
    the panel and what to check next.  ``base_color`` is the color below the first of
    ``thresholds``, which are lines in a graph.  ``mappings`` are texts and colors shown in place of
    values, and ``no_value`` is the text in place of a missing value.  ``columns`` are the headings
    of a table by label, in this order; ``units`` are by series name, and ``sort`` is the heading to
    sort by, in descending order.  With ``traces`` there is a link to the traces of slow calls.
    """

    title: str
    description: str
    unit: str
    query: str | Query | Sequence[str | Query]
    kind: Kind = Kind.LINES
    width: int = 0
    height: int = 0
    thresholds: Thresholds = ()
    base_color: str = GREEN
    maximum: float | None = None
    colors: Mapping[str, str] = field(default_factory=dict)
    mappings: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    sort: str = ""
    no_value: str = ""
    traces: bool = False

    @property
    def queries(self) -> list[Query]:
        """All queries as objects."""
        given = [self.query] if isinstance(self.query, str | Query) else self.query
        return [Query(each) if isinstance(each, str) else each for each in given]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading; their widths add up to whole lines of `GRID_COLUMNS`."""

    title: str
    panels: Sequence[Panel]
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable that takes the values of a label; initially all of them are selected."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One dashboard."""

    name: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    traces: bool = False

    @property
    def uid(self) -> str:
        """The identifier in links and bookmarks; it never changes."""
        return f"samserve-{self.name}"


GRID_COLUMNS = 24
"""Columns of a dashboard."""
