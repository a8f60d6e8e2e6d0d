"""CVAT's run lengths: row by row in the box around a mask, background first.

Source: cvat/apps/dataset_manager/formats/transformations.py MaskConverter.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samserve.core import run_lengths
from samserve.core.run_lengths import IntArray
from samserve.datasets import pixels
from samserve.datasets.label_studio.rle import row_runs
from samserve.types import CocoRle, Size

_MAX_PIXELS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class BoxedMask:
    """Run lengths of the box at ``left`` and ``top`` of ``size``."""

    runs: tuple[int, ...]
    left: int
    top: int
    size: Size


def from_rle(mask: CocoRle) -> BoxedMask | None:
    """Return a mask in the box around it; None for an empty one.

    Raises ``ValueError`` for run lengths that do not fit their size.
    """
    columns = pixels.runs_of(mask)
    box = pixels.extent(columns, mask.size)
    if not box.area:
        return None
    rows = row_runs(columns, mask.size)
    height, width = box.y_max - box.y_min + 1, box.x_max - box.x_min + 1
    starts, ends = _objects(rows)
    # A run may continue in the next row only if the box has the width of the image.
    row = starts // mask.size.width
    offset = (row - box.y_min) * width - box.x_min - row * mask.size.width
    runs = _runs(starts + offset, ends + offset, height * width)
    return BoxedMask(tuple(runs.tolist()), box.x_min, box.y_min, Size(height, width))


def to_rle(mask: BoxedMask, image: Size) -> CocoRle:
    """Return a mask as run lengths of the image; what is beyond it is cut off.

    Raises ``ValueError`` for run lengths that do not fill the box.
    """
    box = mask.size
    if not (box.height > 0 and box.width > 0 and box.pixels <= _MAX_PIXELS):
        raise ValueError(f"its box of {box.width}x{box.height} has no pixels, or too many")
    rows = np.array(mask.runs, dtype=np.int64)
    if (rows < 0).any() or int(rows.sum()) != box.pixels:
        raise ValueError(f"its rle does not sum to {box.pixels} pixels")
    # As rows of the box are columns of the box mirrored at its diagonal.
    columns = row_runs(rows, Size(box.width, box.height))
    starts, ends = _split(*_objects(columns), box.height)
    column, first = np.divmod(starts, box.height)
    x, y = column + mask.left, first + mask.top
    y_end = y + ends - starts
    kept = (x >= 0) & (x < image.width) & (y < image.height) & (y_end > 0)
    x, y, y_end = x[kept], np.maximum(y[kept], 0), np.minimum(y_end[kept], image.height)
    runs = _runs(x * image.height + y, x * image.height + y_end, image.pixels)
    return run_lengths.from_runs(image, runs)


def _objects(runs: IntArray) -> tuple[IntArray, IntArray]:
    """Return where the runs of the object begin and end."""
    borders = np.cumsum(runs)
    starts, ends = borders[:-1:2], borders[1::2]
    filled = starts < ends
    return starts[filled], ends[filled]


def _split(starts: IntArray, ends: IntArray, height: int) -> tuple[IntArray, IntArray]:
    """Return runs of which none continues in the next column."""
    first, last = starts // height, (ends - 1) // height
    count = last - first + 1
    offset = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    column = np.repeat(first, count) + offset
    return (
        np.maximum(np.repeat(starts, count), column * height),
        np.minimum(np.repeat(ends, count), (column + 1) * height),
    )


def _runs(starts: IntArray, ends: IntArray, total: int) -> IntArray:
    """Return run lengths, background first, of ordered runs that may touch."""
    apart = np.ones(starts.size, dtype=np.bool_)
    apart[1:] = starts[1:] > ends[:-1]
    last = np.append(apart[1:], True)
    changes = np.stack([starts[apart], ends[last[: ends.size]]], axis=1).reshape(-1)
    changes = changes[changes < total]
    return np.diff(changes, prepend=0, append=total)
