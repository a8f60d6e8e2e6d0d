"""Masks as the intervals of their pixels, for images that are too large for an array.

Intervals are int64 ``[n, 2]``: start and end, exclusive, of runs of pixels in column-major order,
as in COCO's run lengths, ordered, not empty, neither overlapping nor adjacent.  Memory and time
depend on their number, never on the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samserve.core import run_lengths
from samserve.core.run_lengths import IntArray
from samserve.types import BoolArray, CocoRle, Size

Window = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels of the image; right and bottom are exclusive."""

EMPTY: IntArray = np.empty((0, 2), dtype=np.int64)


def from_rle(rle: CocoRle) -> IntArray:
    """Return the intervals of a mask.  Raises ``ValueError`` as `run_lengths.decode` does."""
    return from_runs(np.array(run_lengths.uncompressed(rle), dtype=np.int64))


def from_runs(runs: IntArray) -> IntArray:
    """Return the intervals of run lengths, background first."""
    ends = np.cumsum(runs)
    pairs = ends[: ends.size // 2 * 2].reshape(-1, 2)
    return _joined(pairs[pairs[:, 0] < pairs[:, 1]])


def from_mask(mask: BoolArray) -> IntArray:
    """Return the intervals of bool ``[h, w]``."""
    return from_runs(run_lengths.runs(mask))


def to_runs(intervals: IntArray, size: Size) -> IntArray:
    """Return the run lengths, int64, background first, which sum to *size*."""
    runs = np.diff(intervals.reshape(-1), prepend=0, append=size.pixels)
    # COCO writes no empty run at the end.
    return runs[:-1] if runs[-1] == 0 and runs.size > 1 else runs


def to_rle(intervals: IntArray, size: Size) -> CocoRle:
    """Return the run lengths of COCO, the same characters as of the dense mask."""
    return run_lengths.from_runs(size, to_runs(intervals, size))


def area(intervals: IntArray) -> int:
    """Return the number of pixels."""
    return int((intervals[:, 1] - intervals[:, 0]).sum())


def extent(intervals: IntArray, height: int) -> Window:
    """Return the smallest window with all pixels; of an empty mask, an empty one."""
    if not len(intervals):
        return 0, 0, 0, 0
    first, last = intervals[:, 0], intervals[:, 1] - 1
    # A run that continues in the next column has pixels in the first and in the last row.
    crosses = bool((first // height != last // height).any())
    top = 0 if crosses else int((first % height).min())
    bottom = height if crosses else int((last % height).max()) + 1
    return int(first[0] // height), top, int(last[-1] // height) + 1, bottom


def union(masks: Sequence[IntArray]) -> IntArray:
    """Return the pixels that are in any of the masks, which have the same frame."""
    every = np.concatenate([EMPTY, *masks])
    every = every[np.argsort(every[:, 0], kind="stable")]
    every[:, 1] = np.maximum.accumulate(every[:, 1]) if len(every) else every[:, 1]
    return _joined(every)


def intersection(first: IntArray, second: IntArray) -> int:
    """Return the number of pixels in both of two masks of the same frame."""
    if not (len(first) and len(second)):
        return 0
    inside = _pixels_before(first, second)
    return int((inside[:, 1] - inside[:, 0]).sum())


def shifted(intervals: IntArray, size: Size, left: int, top: int, into: Size) -> IntArray:
    """Return a mask of a part of an image, of *size*, in the frame of the image.

    *left* and *top* are the first pixel of the part.  The part is inside of the image, *into*.
    """
    column, row, length = _by_column(intervals, size.height)
    start = (column + left) * into.height + row + top
    return _joined(np.stack([start, start + length], axis=1))


def clipped(intervals: IntArray, height: int, window: Window) -> IntArray:
    """Return the pixels inside of a window, in the same frame, of *height* rows."""
    left, top, right, bottom = window
    column, row, length = _by_column(intervals, height)
    inside = (column >= left) & (column < right)
    start = np.maximum(row, top)[inside]
    end = np.minimum(row + length, bottom)[inside]
    kept = start < end
    first = column[inside][kept] * height
    return _joined(np.stack([first + start[kept], first + end[kept]], axis=1))


def contains(intervals: IntArray, positions: IntArray) -> BoolArray:
    """Return which column-major positions, int64 ``[n]``, are in a mask: bool ``[n]``."""
    if not len(intervals):
        return np.zeros(len(positions), dtype=np.bool_)
    run = np.searchsorted(intervals[:, 0], positions, side="right") - 1
    found: BoolArray = (run >= 0) & (positions < intervals[run, 1])
    return found


def dense(intervals: IntArray, height: int, window: Window) -> BoolArray:
    """Return the pixels inside of a window as bool ``[h, w]``."""
    left, top, right, bottom = window
    column, row, length = _by_column(clipped(intervals, height, window), height)
    rows, columns = bottom - top, right - left
    # Each run changes the value at its start and after its end; one row more, for ends.
    changes = np.zeros((columns, rows + 1), dtype=np.int8)
    changes[column - left, row - top] += 1
    changes[column - left, row - top + length] -= 1
    filled: BoolArray = np.cumsum(changes, axis=1, dtype=np.int8)[:, :rows].T > 0
    return filled


def _by_column(intervals: IntArray, height: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return column, first row and length of runs that are split at the ends of columns."""
    first, last = intervals[:, 0] // height, (intervals[:, 1] - 1) // height
    count = last - first + 1
    run = np.repeat(np.arange(len(intervals)), count)
    column = first[run] + np.arange(run.size) - np.repeat(np.cumsum(count) - count, count)
    start = np.maximum(intervals[run, 0], column * height)
    end = np.minimum(intervals[run, 1], (column + 1) * height)
    return column, start - column * height, end - start


def _joined(intervals: IntArray) -> IntArray:
    """Return ordered intervals, whose ends are ordered too, without overlaps and adjacent ones."""
    if not len(intervals):
        return EMPTY
    begins = np.append(True, intervals[1:, 0] > intervals[:-1, 1])
    starts = np.flatnonzero(begins)
    ends = np.append(starts[1:], len(intervals)) - 1
    return np.stack([intervals[starts, 0], intervals[ends, 1]], axis=1)


def _pixels_before(intervals: IntArray, positions: IntArray) -> IntArray:
    """Return how many pixels of a mask are before each position, of the shape of *positions*."""
    lengths = intervals[:, 1] - intervals[:, 0]
    before = np.cumsum(lengths) - lengths
    run = np.searchsorted(intervals[:, 0], positions, side="right") - 1
    inside = np.clip(positions - intervals[run, 0], 0, lengths[run])
    return np.where(run < 0, 0, before[run] + inside)
