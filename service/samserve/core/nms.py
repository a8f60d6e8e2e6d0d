"""Greedy non-maximum suppression of boxes, with the decisions of torchvision's CPU kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samserve.types import Array, FloatArray

IntArray = npt.NDArray[np.int64]


def nms(boxes_xyxy: Array, scores: Array, threshold: float) -> IntArray:
    """Return the indices of the kept boxes, best score first.

    A box is suppressed if its IoU with a kept one is *above* the threshold; the float32 IoU is
    compared in double precision, and a NaN IoU suppresses nothing.  Equal scores keep the order of
    the input.  Source: torchvision ops/cpu/nms_kernel.cpp, used by
    segment-anything automatic_mask_generator.py:251-257.
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    sides = _columns(boxes_xyxy)[:, order]
    suppressed = np.zeros(order.size, dtype=np.bool_)
    for best in range(order.size):
        if suppressed[best]:
            continue
        iou = _iou(sides[:, best, None], sides[:, best + 1 :])
        suppressed[best + 1 :] |= iou.astype(np.float64) > threshold
    return np.asarray(order[~suppressed], dtype=np.int64)


def _columns(boxes_xyxy: Array) -> FloatArray:
    """Return the four sides of boxes ``[n, 4]``, each contiguous: float32 ``[4, n]``."""
    return np.ascontiguousarray(np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4).T)


def _iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return the IoU of sides ``[4, ...]``, broadcast; areas without the +1 of inclusive pixels."""
    zero = np.float32(0)
    width = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]), zero)
    height = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]), zero)
    overlap = width * height
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(overlap / (_areas(a) + _areas(b) - overlap), dtype=np.float32)


def _areas(sides: FloatArray) -> FloatArray:
    """Return the areas of sides ``[4, ...]``."""
    return np.asarray((sides[2] - sides[0]) * (sides[3] - sides[1]), dtype=np.float32)
