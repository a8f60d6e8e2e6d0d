"""What a part of the suite measures, as JSON and back.

Every block of both sides is kept, so that tables and plots need no second run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

DIGITS = 4


@dataclass(frozen=True)
class Cost:
    """One block on one side: wall-clock and CPU seconds of a call."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Ratio:
    """Our costs divided by theirs: that of the medians, and quartiles of the blocks' ratios."""

    median: float
    low: float
    high: float


@dataclass
class Comparison:
    """An operation on both sides, in alternating blocks.

    The peaks are bytes of resident memory above that of the process with the model, 0 where they
    were not measured; *agreement* is how far the results of both sides are the same.
    """

    operation: str
    baseline: str
    ours: list[Cost] = field(default_factory=list)
    theirs: list[Cost] = field(default_factory=list)
    agreement: str = ""
    our_peak_bytes: int = 0
    their_peak_bytes: int = 0

    def medians(self, cost: str) -> tuple[float, float]:
        """Return both medians of ``wall_s`` or ``cpu_s``."""
        ours, theirs = self._values(cost)
        return float(np.median(ours)), float(np.median(theirs))

    def ratio(self, cost: str) -> Ratio:
        """Return the ratio of ``wall_s`` or ``cpu_s``: below 1, samserve needs less."""
        ours, theirs = self._values(cost)
        low, high = np.percentile(ours / theirs, (25, 75))
        return Ratio(float(np.median(ours) / np.median(theirs)), float(low), float(high))

    def _values(self, cost: str) -> tuple[np.ndarray, np.ndarray]:
        ours, theirs = (
            np.array([getattr(each, cost) for each in side]) for side in (self.ours, self.theirs)
        )
        return ours, theirs


@dataclass
class Figure:
    """Something measured in blocks without a baseline, such as memory or CPU of a call."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)

    def quartiles(self) -> tuple[float, float, float]:
        """Return the median and both quartiles."""
        middle, low, high = np.percentile(self.values, (50, 25, 75))
        return float(middle), float(low), float(high)


@dataclass
class Latencies:
    """Milliseconds of many calls of one kind."""

    name: str
    values_ms: list[float] = field(default_factory=list)

    def percentiles(self) -> tuple[float, ...]:
        """Return the 50th, 90th, 99th and 100th percentile."""
        return tuple(float(each) for each in np.percentile(self.values_ms, (50, 90, 99, 100)))


@dataclass
class Result:
    """One part, and the machine and the time at which it ran."""

    part: str
    comparisons: list[Comparison] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    latencies: list[Latencies] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    date: str = ""
    commit: str = ""
    machine: str = ""
    versions: str = ""
    load: tuple[float, float] = (0.0, 0.0)
    seconds: float = 0.0
    quick: bool = False


def dumps(results: Sequence[Result]) -> str:
    """Return the results as JSON, a line for each, numbers with a few digits."""
    lines = [json.dumps(_rounded(asdict(each)), separators=(",", ":")) for each in results]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def loads(text: str) -> list[Result]:
    """Revert `dumps`."""
    return [_result(each) for each in json.loads(text)]


def load(path: Path) -> list[Result]:
    """Read a file that `dumps` made."""
    return loads(path.read_text(encoding="utf-8"))


def _result(values: dict[str, Any]) -> Result:
    comparisons = [
        Comparison(
            **{
                **each,
                "ours": [Cost(*cost) for cost in each["ours"]],
                "theirs": [Cost(*cost) for cost in each["theirs"]],
            }
        )
        for each in values["comparisons"]
    ]
    figures = [Figure(**each) for each in values["figures"]]
    latencies = [Latencies(**each) for each in values["latencies"]]
    rest = {"comparisons": comparisons, "figures": figures, "latencies": latencies}
    return Result(**{**values, **rest, "load": tuple(values["load"])})


def _rounded(value: Any) -> Any:
    """Round floats, and write a `Cost` as a pair."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        if value.keys() == {"wall_s", "cpu_s"}:
            return [_rounded(value["wall_s"]), _rounded(value["cpu_s"])]
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
