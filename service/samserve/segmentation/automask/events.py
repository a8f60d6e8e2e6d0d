"""Events of an AutoMask call: progress, records and the summary."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from samserve.segmentation.encode import EmbeddingLease
from samserve.types import Mask


@dataclass(frozen=True, slots=True)
class AutoMaskRecord:
    """A mask found by AutoMask, with the fields of an SA-1B annotation (all in image pixels)."""

    mask: Mask
    point: tuple[float, float]
    crop_box: tuple[float, float, float, float]


class FilterCount(NamedTuple):
    """Numbers of candidates before and after one filter."""

    name: str
    count_in: int
    count_out: int


def sum_counts(counts: Iterable[FilterCount]) -> tuple[FilterCount, ...]:
    """Sum the counts per filter, in the order of first use."""
    sums: dict[str, FilterCount] = {}
    for name, count_in, count_out in counts:
        _, sum_in, sum_out = sums.get(name, (name, 0, 0))
        sums[name] = FilterCount(name, sum_in + count_in, sum_out + count_out)
    return tuple(sums.values())


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress over all crops."""

    points_done: int
    points_total: int
    crops_done: int
    crops_total: int


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """The last event: the embedding that was used and the counts per filter."""

    lease: EmbeddingLease
    filters: tuple[FilterCount, ...]
    mask_count: int


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """A batch of the final masks; all batches together are in the reference's order."""

    records: tuple[AutoMaskRecord, ...]


Event = Progress | Records | Summary
