"""From low-res logits to masks over the image: upsampling, thresholds, stability, boxes.

Upsampling is bilinear with ``align_corners=False``, in two steps: low-res to the model frame, cut
to the resized image, then to the image (segment-anything modeling/sam.py:133-162).  In both steps
together, every image pixel is a weighted mean of 3 x 3 neighbouring low-res logits.  This has two
uses here.  Both steps are computed as one, three taps per axis, with the coordinates that torch
computes.  And a pixel whose nine neighbours all lie on one side of a threshold is known without
interpolation: ``summarize`` and ``binary_mask`` process vertical strips of the image, row by row,
and interpolate only the rows of a strip whose neighbours straddle the threshold.  They interpolate
as ``upscale_logits`` does, so the results are bit-identical.

Elementwise numpy is intended: small matrix products in several threads queue for BLAS's threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from samserve.types import BoolArray, FloatArray, Size

IntArray = npt.NDArray[np.int64]
BoxXyxy = tuple[int, int, int, int]

_STRIPS = 16
# One for each image size in current use; 20 bytes per row and column of the image.
_CACHED_UPSAMPLINGS = 32
_TAPS = 3
_ROUNDING = 1e-5
"""Bound of the rounding error of one pixel, relative to the largest logit; about 50 ulp."""


@dataclass(frozen=True, slots=True, eq=False)
class AxisTaps:
    """One axis of both steps: output *i* is the sum of ``weights[k, i] * input[first[i] + k]``.

    *first* is int64 ``[n]`` and ascends, *weights* float32 ``[3, n]``, non-negative, sum 1.
    """

    first: IntArray
    weights: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Upsampling:
    """Interpolation weights from low-res logits to one image (or crop) size; cached."""

    image: Size
    rows: AxisTaps
    columns: AxisTaps
    strips: tuple[slice, ...]

    @classmethod
    @lru_cache(maxsize=_CACHED_UPSAMPLINGS)
    def between(
        cls, resized: Size, image: Size, *, model_side: int, low_res_side: int
    ) -> Upsampling:
        """Compute the weights for *image*, which covers *resized* of the model frame.

        If *model_side* equals *low_res_side* and *resized* fills the frame, the first step is the
        identity: logits that cover the whole image are upsampled in one step.
        """
        edges = np.linspace(0, image.width, min(_STRIPS, image.width) + 1).astype(int).tolist()
        return cls(
            image,
            _axis_taps(low_res_side, model_side, resized.height, image.height),
            _axis_taps(low_res_side, model_side, resized.width, image.width),
            tuple(slice(a, b) for a, b in pairwise(edges)),
        )


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


def upscale_logits(low_res: FloatArray, upsampling: Upsampling) -> FloatArray:
    """Upsample finite logits float32 ``[L, L]`` to float32 ``[h, w]`` of the image.

    Equal to the reference's two calls of ``F.interpolate`` up to float32 rounding.
    """
    every_row = np.arange(upsampling.image.height)
    transposed = np.ascontiguousarray(low_res.T, dtype=np.float32)
    strips = [
        _strip_logits(transposed, upsampling, strip, every_row) for strip in upsampling.strips
    ]
    return np.concatenate(strips, axis=1)


def mask_to_box(mask: BoolArray) -> BoxXyxy:
    """Return XYXY of the extreme pixels of a mask ``[h, w]``, both inclusive; zeros if empty.

    Source: segment-anything utils/amg.py:303-346.
    """
    return _extent(np.asarray(mask.any(axis=0)), np.asarray(mask.any(axis=1)))


def summarize(
    low_res: FloatArray, upsampling: Upsampling, *, level: float, offset: float
) -> MaskSummary:
    """Return area, box and stability at image resolution of logits float32 ``[L, L]``.

    The results equal those on the pixels of ``upscale_logits``, without computing all pixels.
    *offset* is not negative.
    """
    area = inner = outer = 0
    in_column = np.zeros(upsampling.image.width, dtype=np.bool_)
    in_row = np.zeros(upsampling.image.height, dtype=np.bool_)
    for block in _blocks(low_res, upsampling, level - offset, level + offset):
        mask = block.logits > level
        known_pixels = block.known_pixels
        area += known_pixels + _count(mask)
        inner += known_pixels + _count(block.logits > level + offset)
        outer += known_pixels + _count(block.logits > level - offset)
        in_column[block.columns] = mask.any(axis=0) | (known_pixels > 0)
        in_row |= block.inside
        in_row[block.open_rows] |= mask.any(axis=1)
    return MaskSummary(area, _extent(in_column, in_row), inner / outer if outer else 0.0)


def binary_mask(low_res: FloatArray, upsampling: Upsampling, *, level: float) -> BoolArray:
    """Return the mask bool ``[h, w]``: ``upscale_logits(...) > level``, but faster.

    A pixel exactly at the level is outside.
    """
    mask = np.zeros((upsampling.image.height, upsampling.image.width), dtype=np.bool_)
    for block in _blocks(low_res, upsampling, level, level):
        strip = mask[:, block.columns]
        strip[:] = block.inside[:, None]
        strip[block.open_rows] = block.logits > level
    return mask


@dataclass(frozen=True, slots=True, eq=False)
class _Block:
    """A strip of the image that has pixels above the lower level.

    Rows *inside* (bool ``[h]``) are wholly above the upper level; the *open_rows* (``[m]``) have
    their *logits* (``[m, width of the strip]``); every other row is wholly not above the lower.
    """

    columns: slice
    inside: BoolArray
    open_rows: IntArray
    logits: FloatArray

    @property
    def known_pixels(self) -> int:
        """Number of pixels of the rows inside."""
        return _count(self.inside) * int(self.logits.shape[1])


def _blocks(
    low_res: FloatArray, upsampling: Upsampling, lower: float, upper: float
) -> Iterator[_Block]:
    """Yield strips of an upsampled map, with the rows that are known and those to interpolate."""
    transposed = np.ascontiguousarray(low_res.T, dtype=np.float32)
    highest, lowest = _bounds(transposed, upsampling)
    guard = _ROUNDING * max(1.0, float(abs(highest.max())), float(abs(lowest.min())))
    outside = (highest <= lower - guard)[:, upsampling.rows.first]
    inside = (lowest > upper + guard)[:, upsampling.rows.first]
    for index, strip in enumerate(upsampling.strips):
        if outside[index].all():
            continue
        open_rows = np.flatnonzero(~(outside[index] | inside[index]))
        logits = _strip_logits(transposed, upsampling, strip, open_rows)
        yield _Block(strip, inside[index], open_rows, logits)


def _bounds(transposed: FloatArray, upsampling: Upsampling) -> tuple[FloatArray, FloatArray]:
    """Return the extreme logits per strip and 3 low-res rows, each ``[strips, rows - 2]``."""
    spans = [_span(upsampling.columns, strip) for strip in upsampling.strips]
    highest = np.stack([transposed[span].max(axis=0) for span in spans])
    lowest = np.stack([transposed[span].min(axis=0) for span in spans])
    highest = np.maximum(np.maximum(highest[:, :-2], highest[:, 1:-1]), highest[:, 2:])
    lowest = np.minimum(np.minimum(lowest[:, :-2], lowest[:, 1:-1]), lowest[:, 2:])
    return highest, lowest


def _span(axis: AxisTaps, outputs: slice | IntArray) -> slice:
    """Return the low-res samples under a non-empty range of outputs."""
    first = axis.first[outputs]
    return slice(int(first[0]), int(first[-1]) + _TAPS)


def _strip_logits(
    transposed: FloatArray, upsampling: Upsampling, strip: slice, rows: IntArray
) -> FloatArray:
    """Upsample the given rows (ascending) of one strip: float32 ``[rows, columns]``."""
    if not rows.size:
        return np.empty((0, strip.stop - strip.start), dtype=np.float32)
    span = _span(upsampling.rows, rows)
    wide = _blend(
        transposed[:, span], upsampling.columns.first[strip], upsampling.columns.weights[:, strip]
    )
    first = upsampling.rows.first[rows] - span.start
    return _blend(np.ascontiguousarray(wide.T), first, upsampling.rows.weights[:, rows])


def _blend(samples: FloatArray, first: IntArray, weights: FloatArray) -> FloatArray:
    """Sum three neighbouring rows of *samples* ``[n, k]`` per output: float32 ``[m, k]``."""
    mixed = samples[first]
    mixed *= weights[0][:, None]
    for tap in range(1, _TAPS):
        tap_values = samples[first + tap]
        tap_values *= weights[tap][:, None]
        mixed += tap_values
    return mixed


def _axis_taps(low_res: int, model: int, resized: int, image: int) -> AxisTaps:
    """Compose the two steps along one axis: low-res to model, cropped at *resized*, to image."""
    low, low_next, low_weight = _bilinear(low_res, model)
    mid, mid_next, mid_weight = _bilinear(resized, image)
    first = np.minimum(low[mid], low_res - _TAPS)
    weights = np.zeros((_TAPS, image))
    outputs = np.arange(image)
    for model_index, weight in ((mid, 1 - mid_weight), (mid_next, mid_weight)):
        near, far = low[model_index] - first, low_next[model_index] - first
        np.add.at(weights, (near, outputs), weight * (1 - low_weight[model_index]))
        np.add.at(weights, (far, outputs), weight * low_weight[model_index])
    taps = AxisTaps(first, weights.astype(np.float32))
    taps.first.flags.writeable = taps.weights.flags.writeable = False
    return taps


def _bilinear(inputs: int, outputs: int) -> tuple[IntArray, IntArray, npt.NDArray[np.float64]]:
    """Return per output the index, the next index and its weight in torch's bilinear resize.

    torch computes the coordinate in float32 with one fused multiply-add (ATen
    UpSample.h:area_pixel_compute_source_index); float64 rounded once is equal.
    """
    scale = float(np.float32(inputs) / np.float32(outputs))
    centre = scale * (np.arange(outputs) + 0.5) - 0.5
    coordinate = np.maximum(centre.astype(np.float32), np.float32(0))
    index = np.minimum(coordinate.astype(np.int64), inputs - 1)
    weight = np.clip(coordinate - index.astype(np.float32), 0, 1).astype(np.float64)
    return index, np.minimum(index + 1, inputs - 1), weight


def _extent(in_column: BoolArray, in_row: BoolArray) -> BoxXyxy:
    """Return the first and last column and row with a pixel, or zeros."""
    x, y = np.flatnonzero(in_column), np.flatnonzero(in_row)
    if not x.size:
        return (0, 0, 0, 0)
    return (int(x[0]), int(y[0]), int(x[-1]), int(y[-1]))


def _count(mask: BoolArray) -> int:
    """Return the number of pixels as an int."""
    return int(np.count_nonzero(mask))
