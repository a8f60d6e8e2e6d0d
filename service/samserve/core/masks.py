"""From low-res logits to masks over the image: thresholds, stability, boxes, run lengths.

A pixel is a weighted mean of 3 x 3 neighbouring low-res logits (`samserve.core.upsampling`), so a
pixel whose neighbours all lie on one side of a threshold is known without interpolation.  The image
is divided into strips of a few columns; in each, only those rows are interpolated whose logits
straddle a threshold, with the operations of `upscale_logits`, so that results are bit-identical.
Whatever is needed of a mask comes from these rows: no array of the size of the image is written for
its run lengths.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from samserve.core.upsampling import TAPS, IntArray, Upsampling, blend
from samserve.types import BoolArray, FloatArray, Size

BoxXyxy = tuple[int, int, int, int]

_STRIP = 64
"""Columns of a strip: with fewer, less is interpolated and more is known by rows of one strip."""
_CHUNK_PIXELS = 1 << 18
"""Pixels that are interpolated at once, to bound memory and stay in the processor's cache."""
_ROUNDING = 1e-5
"""Bound of the rounding error of one pixel, relative to the largest logit; about 50 ulp."""


@dataclass(frozen=True, slots=True)
class MaskSummary:
    """Properties of a mask that AutoMask needs before non-maximum suppression.

    *area* in pixels; *box_xyxy* of inclusive extreme pixels, zeros for an empty mask; *stability*,
    in 0..1, is the IoU of the masks at the level plus and minus the offset, 0 if both are empty
    (segment-anything utils/amg.py:156-176, where 0/0 is NaN, also not above a threshold).
    """

    area: int
    box_xyxy: BoxXyxy
    stability: float


@dataclass(frozen=True, slots=True, eq=False)
class _Strips:
    """Strips of equal width; ``left`` int64 ``[S]`` is the first column of each, ascending.

    In strip s, rows of the image where ``inside`` (bool ``[S, h]``) is set belong to the mask as a
    whole.  Row ``row[i]`` of strip ``strip[i]`` (both int64 ``[m]``, ordered by strip, then row)
    has the pixels ``mask`` (bool ``[m, width]``), and is not inside.  All other rows are outside.
    """

    left: IntArray
    width: int
    inside: BoolArray
    strip: IntArray
    row: IntArray
    mask: BoolArray

    def columns(self) -> IntArray:
        """Return the columns of every strip, ``[S, width]``."""
        columns: IntArray = self.left[:, None] + np.arange(self.width)
        return columns


@dataclass(frozen=True, slots=True, eq=False)
class TracedMask:
    """A mask over an image, by those of its rows that are neither inside nor outside."""

    image: Size
    parts: tuple[_Strips, ...]
    stability: float

    def summary(self) -> MaskSummary:
        """Return area, box and stability."""
        area = sum(_count(part.inside) * part.width + _count(part.mask) for part in self.parts)
        in_row = np.zeros(self.image.height, dtype=np.bool_)
        in_column = np.zeros(self.image.width, dtype=np.bool_)
        for part in self.parts:
            in_row |= part.inside.any(axis=0)
            in_row[part.row[part.mask.any(axis=1)]] = True
            in_column[part.columns()] = _columns_with_pixels(part)
        return MaskSummary(area, _extent(in_column, in_row), self.stability)

    def pixels(self) -> BoolArray:
        """Return the mask, bool ``[h, w]``."""
        mask = np.zeros((self.image.height, self.image.width), dtype=np.bool_)
        for part in self.parts:
            rows = np.repeat(part.inside[:, :, None], part.width, axis=2)
            rows[part.strip, part.row] = part.mask
            for left, strip in zip(part.left.tolist(), rows, strict=True):
                mask[:, left : left + part.width] = strip
        return mask

    def runs(self) -> IntArray:
        """Return COCO's run lengths, int64: column by column, background first."""
        height = self.image.height
        top = np.zeros(self.image.width, dtype=np.bool_)
        bottom = top.copy()
        changes = []
        for part in self.parts:
            places, first, last = _edges(part)
            changes.append(places)
            top[part.columns()], bottom[part.columns()] = first, last
        # The pixel before the top of a column is the bottom of the previous one; before the first
        # there is background.
        before = np.concatenate([[False], bottom[:-1]])
        changes.append(np.flatnonzero(top != before) * height)
        places = np.concatenate(changes)
        places.sort()
        return np.diff(places, prepend=0, append=self.image.pixels)


def summarize(
    low_res: FloatArray, upsampling: Upsampling, *, level: float, offset: float
) -> MaskSummary:
    """Return area, box and stability at image resolution of logits float32 ``[L, L]``.

    The results equal those on the pixels of ``upscale_logits``, without computing all pixels.
    *offset* is not negative.
    """
    return trace(low_res, upsampling, level=level, offset=offset).summary()


def binary_mask(low_res: FloatArray, upsampling: Upsampling, *, level: float) -> BoolArray:
    """Return the mask bool ``[h, w]``: ``upscale_logits(...) > level``, but faster.

    A pixel exactly at the level is outside.
    """
    return trace(low_res, upsampling, level=level).pixels()


def trace(
    low_res: FloatArray, upsampling: Upsampling, *, level: float, offset: float = 0.0
) -> TracedMask:
    """Return the mask ``upscale_logits(...) > level`` of logits float32 ``[L, L]``.

    *offset*, not negative, is that of the stability.
    """
    samples = np.ascontiguousarray(low_res.T, dtype=np.float32)
    lower, upper = level - offset, level + offset
    guard = _ROUNDING * max(1.0, float(np.abs(samples).max()))
    parts, inner, outer = [], 0, 0
    for left, width in _strips_with_pixels(samples, upsampling, lower - guard):
        strips, rows = _along_columns(samples, upsampling, left, width, lower - guard)
        outside, inside = _known_rows(strips, rows, lower - guard, upper + guard)
        strip, row = np.nonzero(~(outside | inside))
        masks = []
        for logits in _interpolated(strips, rows, strip, row):
            mask = logits > level
            masks.append(mask)
            inner += _count(logits > upper) if offset else _count(mask)
            outer += _count(logits > lower) if offset else _count(mask)
        mask = np.concatenate(masks) if masks else np.empty((0, width), dtype=np.bool_)
        known = _count(inside) * width
        inner, outer = inner + known, outer + known
        every = np.zeros((len(left), upsampling.image.height), dtype=np.bool_)
        every[:, rows.start : rows.stop] = inside
        parts.append(_Strips(left, width, every, strip, row + rows.start, mask))
    return TracedMask(upsampling.image, tuple(parts), inner / outer if outer else 0.0)


def mask_to_box(mask: BoolArray) -> BoxXyxy:
    """Return XYXY of the extreme pixels of a mask ``[h, w]``, both inclusive; zeros if empty.

    Source: segment-anything utils/amg.py:303-346.
    """
    return _extent(np.asarray(mask.any(axis=0)), np.asarray(mask.any(axis=1)))


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Rows *start* to *stop* of an image: their first sample, and weights ``[3, rows]``."""

    start: int
    stop: int
    first: IntArray
    weights: FloatArray


def _strips_with_pixels(
    samples: FloatArray, upsampling: Upsampling, lower: float
) -> Iterator[tuple[IntArray, int]]:
    """Yield the first columns of strips with samples ``[L, L]`` above *lower*, and their width.

    The last strip of the image may be narrower, and then comes alone.
    """
    found = _highest_of_three(samples.max(axis=1))[upsampling.columns.first] > lower
    columns, start = len(found), 0
    for width in (_STRIP, columns % _STRIP):
        count = (columns - start) // width if width else 0
        strips = found[start : start + count * width].reshape(count, width or 1)
        left = np.flatnonzero(strips.any(axis=1)) * width + start
        if len(left):
            yield left, width
        start += count * width


def _along_columns(
    samples: FloatArray, upsampling: Upsampling, left: IntArray, width: int, lower: float
) -> tuple[FloatArray, _Rows]:
    """Upsample strips along the columns: logits ``[S, width, l]``, and the rows they are for.

    Rows outside of these have no sample above *lower*.
    """
    columns = (left[:, None] + np.arange(width)).reshape(-1)
    first = upsampling.columns.first[columns]
    highest = samples[int(first[0]) : int(first[-1]) + TAPS].max(axis=0)
    (above,) = np.nonzero(highest > lower)
    low, high = max(int(above[0]) - TAPS + 1, 0), int(above[-1])
    every = upsampling.rows.first
    start, stop = np.searchsorted(every, low), np.searchsorted(every, high, side="right")
    rows = slice(int(start), int(stop))
    used = np.ascontiguousarray(samples[:, low : high + TAPS])
    wide = blend(used, first, upsampling.columns.weights[:, columns])
    strips = wide.reshape(len(left), width, wide.shape[1])
    taps = _Rows(rows.start, rows.stop, every[rows] - low, upsampling.rows.weights[:, rows])
    return strips, taps


def _known_rows(
    strips: FloatArray, rows: _Rows, lower: float, upper: float
) -> tuple[BoolArray, BoolArray]:
    """Return which rows of strips ``[S, width, l]`` are outside and inside, each ``[S, rows]``."""
    highest = _highest_of_three(strips.max(axis=1))
    lowest = -_highest_of_three(-strips.min(axis=1))
    return (highest <= lower)[:, rows.first], (lowest > upper)[:, rows.first]


def _highest_of_three(values: FloatArray) -> FloatArray:
    """Return the highest of each three neighbours on the last axis: ``[..., n - 2]``."""
    pairs = np.maximum(values[..., :-1], values[..., 1:])
    return np.maximum(pairs[..., :-1], pairs[..., 1:])


def _interpolated(
    strips: FloatArray, rows: _Rows, strip: IntArray, row: IntArray
) -> Iterator[FloatArray]:
    """Yield the logits of rows of strips ``[S, width, l]``, chunk by chunk: ``[m, width]``."""
    count, width, length = strips.shape
    samples = np.ascontiguousarray(strips.transpose(0, 2, 1)).reshape(count * length, width)
    first = strip * length + rows.first[row]
    size = max(_CHUNK_PIXELS // width, 1)
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        yield blend(samples, first[part], rows.weights[:, row[part]])


def _edges(part: _Strips) -> tuple[IntArray, BoolArray, BoolArray]:
    """Return where columns change, and their first and last pixels, ``[S, width]`` each.

    Changes are positions in column-major order of pixels that differ from the one above.
    """
    height, (strip, row, mask) = part.inside.shape[1], (part.strip, part.row, part.mask)
    top, bottom = (np.repeat(part.inside[:, [end]], part.width, axis=1) for end in (0, -1))
    top[strip[row == 0]], bottom[strip[row == height - 1]] = mask[row == 0], mask[row == height - 1]
    # The pixels above a row: those of the previous one in the list, or a row that is known.
    above = np.empty_like(mask)
    above[1:] = mask[:-1]
    follows = np.zeros(len(row), dtype=np.bool_)
    follows[1:] = (strip[1:] == strip[:-1]) & (row[1:] == row[:-1] + 1)
    known = ~follows & (row > 0)
    above[known] = part.inside[strip[known], row[known] - 1][:, None]
    above[row == 0] = mask[row == 0]
    # The row below the last of several rows is known.
    ends = np.append(~follows[1:], np.ones(min(len(row), 1), dtype=np.bool_)) & (row < height - 1)
    below = mask[ends] != part.inside[strip[ends], row[ends] + 1][:, None]
    known_rows = np.ones(part.inside.shape, dtype=np.bool_)
    known_rows[strip, row] = False
    both = known_rows[:, 1:] & known_rows[:, :-1]
    flips = np.nonzero(both & (part.inside[:, 1:] != part.inside[:, :-1]))
    places = (
        _places(part, strip, row, mask != above),
        _places(part, strip[ends], row[ends] + 1, below),
        _places(part, flips[0], flips[1] + 1, np.ones((len(flips[0]), part.width), np.bool_)),
    )
    return np.concatenate(places), top, bottom


def _places(part: _Strips, strip: IntArray, row: IntArray, changed: BoolArray) -> IntArray:
    """Return positions in column-major order of the set pixels ``[m, width]`` of rows."""
    index, column = np.nonzero(changed)
    columns = part.left[strip[index]] + column
    positions: IntArray = columns * part.inside.shape[1] + row[index]
    return positions


def _columns_with_pixels(part: _Strips) -> BoolArray:
    """Return which columns of strips have a pixel of the mask, bool ``[S, width]``."""
    found = np.repeat(np.asarray(part.inside.any(axis=1))[:, None], part.width, axis=1)
    if len(part.strip):
        starts = np.flatnonzero(np.diff(part.strip, prepend=-1))
        found[part.strip[starts]] |= np.logical_or.reduceat(part.mask, starts, axis=0)
    return found


def _extent(in_column: BoolArray, in_row: BoolArray) -> BoxXyxy:
    """Return the first and last column and row with a pixel, or zeros."""
    x, y = np.flatnonzero(in_column), np.flatnonzero(in_row)
    if not x.size:
        return (0, 0, 0, 0)
    return (int(x[0]), int(y[0]), int(x[-1]), int(y[-1]))


def _count(mask: BoolArray) -> int:
    """Return the number of pixels as an int."""
    return int(np.count_nonzero(mask))
