"""Pixels inside rings, in numpy alone: even-odd, exact at the centres of pixels.

The server states with these how far polygons differ from a mask, and the client decodes polygons.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from samserve.types import Array, BoolArray, Size

IntArray = npt.NDArray[np.int64]


def runs_inside(rings: Sequence[Array], size: Size) -> IntArray:
    """Return the run lengths of the pixels whose centres are inside rings, int64, as COCO's.

    *rings* are corners ``[n, 2]``, x and y in image pixels, whose last is connected to the first;
    a pixel inside two rings is outside.  Parts beyond *size* are ignored.  A centre on a line
    counts as on its lower side, on a vertical line as on its right side.  That is exact for corners
    at multiples of 1/2 below 2**16.
    """
    changes = _changes(_crossings(rings, size), size)
    return np.diff(changes, prepend=0, append=size.pixels)


def pixels(runs: Sequence[int] | IntArray, size: Size) -> BoolArray:
    """Return the mask, bool ``[h, w]``, of run lengths: column by column, background first.

    Raises ``ValueError`` if they are negative or do not sum to *size*.
    """
    lengths = np.asarray(runs, dtype=np.int64)
    if (lengths < 0).any() or int(lengths.sum()) != size.pixels:
        raise ValueError(f"the runs do not sum to {size.pixels} pixels")
    mask = np.repeat(np.arange(lengths.size) % 2 == 1, lengths)
    return mask.reshape(size.width, size.height).T


def intersection(first: IntArray, second: IntArray) -> int:
    """Return the number of pixels in both of two masks, given by their run lengths."""
    starts, before = np.cumsum(first), np.cumsum(first * (np.arange(first.size) % 2))
    ends = np.cumsum(second)
    ends = ends if ends.size % 2 == 0 else ends[:-1]
    run = np.minimum(np.searchsorted(starts, ends, side="right"), first.size - 1)
    # Of the run that a change of the second mask is in, its pixels after the change do not count.
    inside = before[run] - (run % 2) * (starts[run] - ends)
    return int(inside[1::2].sum() - inside[::2].sum())


def _crossings(rings: Sequence[Array], size: Size) -> IntArray:
    """Return where rings cross the centre line of a column: column-major positions of pixels.

    These are of the first pixel below the crossing; unordered.
    """
    found = [corners for corners in rings if len(corners)]
    if not found:
        return np.empty(0, dtype=np.int64)
    start = np.concatenate(found).astype(np.float64)
    end = np.concatenate([np.roll(corners, -1, axis=0) for corners in found]).astype(np.float64)
    low, high = _first_centre(np.stack([start[:, 0], end[:, 0]]).clip(0, size.width))
    low, high = np.minimum(low, high), np.maximum(low, high)
    count = high - low
    edge = np.repeat(np.arange(count.size), count)
    column = np.arange(edge.size) - np.repeat(np.cumsum(count) - count - low, count)
    (x, y), (x_end, y_end) = start[edge].T, end[edge].T
    # One division, of an exact dividend: where a line passes through a centre, that is found.
    scaled = (y - 0.5) * (x_end - x) + (column + 0.5 - x) * (y_end - y)
    row = np.ceil(scaled / (x_end - x)).clip(0, size.height).astype(np.int64)
    positions: IntArray = column * size.height + row
    return positions


def _first_centre(positions: Array) -> IntArray:
    """Return the index of the first pixel whose centre is at or after each position."""
    return np.ceil(positions - 0.5).astype(np.int64)


def _changes(positions: IntArray, size: Size) -> IntArray:
    """Return the ordered positions that occur an odd number of times."""
    # A run that ends a column ends before the first pixel of the next one.
    places, counts = np.unique(positions, return_counts=True)
    odd: IntArray = places[(counts % 2 == 1) & (places < size.pixels)]
    return odd
