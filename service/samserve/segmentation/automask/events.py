"""What AutoMask reports while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from samserve.segmentation.encode import EmbeddingLease
from samserve.types import AutoMaskRecord


@dataclass(frozen=True, slots=True)
class FilterCount:
    """How many candidates one filter was given, and how many it kept."""

    name: str
    count_in: int
    count_out: int


class FilterCounts:
    """Sums of what the filters did, in the order in which they first ran."""

    def __init__(self) -> None:
        self._counts: dict[str, FilterCount] = {}

    def add(self, counts: Iterable[FilterCount]) -> None:
        """Add one application of filters."""
        for new in counts:
            old = self._counts.get(new.name, FilterCount(new.name, 0, 0))
            self._counts[new.name] = FilterCount(
                new.name, old.count_in + new.count_in, old.count_out + new.count_out
            )

    def listed(self) -> tuple[FilterCount, ...]:
        """Return the sums so far."""
        return tuple(self._counts.values())


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

    lease: EmbeddingLease
    filters: tuple[FilterCount, ...]
    mask_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Some of the final masks; all batches together are in the reference's order."""

    records: tuple[AutoMaskRecord, ...]


Event = Progress | Records | Summary
