"""What a dashboard is made of, without anything of Grafana's format."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

GREEN, YELLOW, ORANGE, RED, GREY = "green", "yellow", "orange", "red", "#8e8e8e"

Steps = Sequence[tuple[float, str]]
"""Values from which on a colour holds."""


class Kind(Enum):
    """How a panel shows its numbers."""

    LINES = "lines"
    STACK = "stack"
    STAT = "stat"
    BARS = "bars"
    TABLE = "table"
    HEATMAP = "heatmap"
    STATES = "states"


LATEST = (Kind.STAT, Kind.BARS, Kind.TABLE)
"""Kinds that show what is now, not how it came about."""


@dataclass(frozen=True, slots=True)
class Query:
    """An expression of Prometheus, and the name of each of its series.

    Without a ``legend`` they have the names of the labels that the expression is grouped by.
    """

    expr: str
    legend: str = ""
    exemplars: bool = False

    @property
    def name(self) -> str:
        """What Grafana makes a series' name of."""
        grouped = re.search(r" by \((?:le, )?([\w, ]+)\)", self.expr)
        labels = grouped[1].split(", ") if grouped else []
        return self.legend or " ".join(f"{{{{{label}}}}}" for label in labels)


@dataclass(frozen=True, slots=True)
class Panel:
    """A question, and what answers it: a query, or several.

    ``width`` and ``height`` are those of its row unless given.  ``description`` says how to read
    the answer and what to look at next.  ``base`` is the colour below the first of ``steps``, which
    are lines in a graph.  ``words`` and their colours are shown in place of numbers, and ``empty``
    in place of no number.  ``columns`` are the headings of a table by label, in order; ``units``
    are by heading, and ``sort`` is the heading whose largest come first.  With ``traces`` there is
    a link to the traces of slow calls.
    """

    title: str
    description: str
    unit: str
    asked: str | Query | Sequence[str | Query]
    kind: Kind = Kind.LINES
    width: int = 0
    height: int = 0
    steps: Steps = ()
    base: str = GREEN
    most: float | None = None
    colors: Mapping[str, str] = field(default_factory=dict)
    words: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)
    units: Mapping[str, str] = field(default_factory=dict)
    sort: str = ""
    empty: str = ""
    traces: bool = False

    @property
    def queries(self) -> list[Query]:
        """What is asked, as queries."""
        asked = [self.asked] if isinstance(self.asked, str | Query) else self.asked
        return [Query(each) if isinstance(each, str) else each for each in asked]


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading; their widths add up to whole lines of `GRID`."""

    title: str
    panels: Sequence[Panel]
    width: int = 8
    height: int = 8


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice of the viewer among the values of a label; all of them at first."""

    name: str
    label: str
    query: str


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    name: str
    title: str
    description: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    traces: bool = False

    @property
    def uid(self) -> str:
        """What links and bookmarks name it by; it never changes."""
        return f"samserve-{self.name}"


GRID = 24
"""Columns of a page."""
