"""Bilinear upsampling from low-res logits to the pixels of an image, in one step.

The reference upsamples with ``align_corners=False`` in two steps: low-res to the model frame, cut
to the resized image, then to the image (segment-anything modeling/sam.py:133-162).  In both steps
together, every image pixel is a weighted mean of 3 x 3 neighbouring low-res logits.  Both steps are
computed as one, three taps per axis, with the coordinates that torch computes: first along the
columns, then along the rows.

Elementwise numpy is intended: small matrix products in several threads queue for BLAS's threads.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from samserve.types import FloatArray, Size

IntArray = npt.NDArray[np.int64]

# One for each image size in current use; 20 bytes per row and column of the image.
_CACHED_UPSAMPLINGS = 32
TAPS = 3


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

    @classmethod
    @lru_cache(maxsize=_CACHED_UPSAMPLINGS)
    def between(
        cls, resized: Size, image: Size, *, model_side: int, low_res_side: int
    ) -> Upsampling:
        """Compute the weights for *image*, which covers *resized* of the model frame.

        If *model_side* equals *low_res_side* and *resized* fills the frame, the first step is the
        identity: logits that cover the whole image are upsampled in one step.
        """
        return cls(
            image,
            _axis_taps(low_res_side, model_side, resized.height, image.height),
            _axis_taps(low_res_side, model_side, resized.width, image.width),
        )

    def along_columns(self, low_res: FloatArray) -> FloatArray:
        """Upsample finite logits ``[L, L]`` along the columns: float32 ``[w, L]``, transposed."""
        transposed = np.ascontiguousarray(low_res.T, dtype=np.float32)
        return blend(transposed, self.columns.first, self.columns.weights)


@dataclass(frozen=True, slots=True, eq=False)
class BoxedLogits:
    """Logits of a mask inside its box only: those that pixels of the box are computed from.

    ``inside`` float32 ``[l, k]`` lies at ``origin`` (row, column) of all ``side * side`` logits, of
    which ``lowest`` is the lowest: outside of the box there is background.
    """

    inside: FloatArray
    origin: tuple[int, int]
    side: int
    lowest: float

    @classmethod
    def of(
        cls, low_res: FloatArray, upsampling: Upsampling, box_xyxy: tuple[int, int, int, int]
    ) -> BoxedLogits:
        """Copy the logits inside the box of a mask, of inclusive extreme pixels."""
        x_min, y_min, x_max, y_max = box_xyxy
        rows, columns = upsampling.rows.first, upsampling.columns.first
        top, left = int(rows[y_min]), int(columns[x_min])
        bottom, right = int(rows[y_max]) + TAPS, int(columns[x_max]) + TAPS
        # A copy: a view would keep the logits of the whole batch alive.
        inside = low_res[top:bottom, left:right].copy()
        return cls(inside, (top, left), low_res.shape[0], float(low_res.min()))

    @property
    def nbytes(self) -> int:
        """Bytes of memory."""
        return self.inside.nbytes

    def low_res(self) -> FloatArray:
        """Return logits ``[side, side]`` of the same mask.

        A pixel outside of the box keeps its side of the threshold, since none of its logits rises.
        """
        logits = np.full((self.side, self.side), self.lowest, dtype=np.float32)
        (top, left), (rows, columns) = self.origin, self.inside.shape
        logits[top : top + rows, left : left + columns] = self.inside
        return logits


def upscale_logits(low_res: FloatArray, upsampling: Upsampling) -> FloatArray:
    """Upsample finite logits float32 ``[L, L]`` to float32 ``[h, w]`` of the image.

    Equal to the reference's two calls of ``F.interpolate`` up to float32 rounding.
    """
    wide = np.ascontiguousarray(upsampling.along_columns(low_res).T)
    return blend(wide, upsampling.rows.first, upsampling.rows.weights)


def blend(samples: FloatArray, first: IntArray, weights: FloatArray) -> FloatArray:
    """Sum three neighbouring rows of *samples* ``[n, k]`` per output: float32 ``[m, k]``.

    *first* is int64 ``[m]``, *weights* float32 ``[3, m]``.
    """
    # With a mode, numpy copies rows instead of checking every index.
    mixed = samples.take(first, axis=0, mode="clip")
    mixed *= weights[0][:, None]
    for tap in range(1, TAPS):
        tap_values = samples.take(first + tap, axis=0, mode="clip")
        tap_values *= weights[tap][:, None]
        mixed += tap_values
    return mixed


def _axis_taps(low_res: int, model: int, resized: int, image: int) -> AxisTaps:
    """Compose the two steps along one axis: low-res to model, cropped at *resized*, to image."""
    low, low_next, low_weight = _bilinear(low_res, model)
    mid, mid_next, mid_weight = _bilinear(resized, image)
    first = np.minimum(low[mid], low_res - TAPS)
    weights = np.zeros((TAPS, image))
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
