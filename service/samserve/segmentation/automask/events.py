"""What AutoMask reports while it runs and when it is done."""

from __future__ import annotations

from dataclasses import dataclass

from samserve.segmentation.embed import Leased
from samserve.types import AutoMaskRecord


@dataclass(frozen=True, slots=True)
class FilterCount:
    """What one filter did."""

    name: str
    came: int
    kept: int


class FilterCounts:
    """Adds up what the filters did, in the order in which they first ran."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, int]] = {}

    def add(self, name: str, came: int, kept: int) -> None:
        """Count one application of a filter."""
        before = self._counts.get(name, (0, 0))
        self._counts[name] = (before[0] + came, before[1] + kept)

    def listed(self) -> tuple[FilterCount, ...]:
        """Give the sums so far."""
        return tuple(FilterCount(name, *counts) for name, counts in self._counts.items())


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the search is, over all crops."""

    points_done: int
    points_total: int
    crops_done: int
    crops_total: int


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """The end of a search: which embedding it used and what each filter did."""

    leased: Leased
    filters: tuple[FilterCount, ...]
    mask_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """All final masks, in the reference's order."""

    records: tuple[AutoMaskRecord, ...]


Event = Progress | Records | Summary
