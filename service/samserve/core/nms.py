"""Greedy non-maximum suppression of boxes, with the decisions of torchvision's CPU kernel."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samserve.types import Array, FloatArray

IntArray = npt.NDArray[np.int64]


def box_iou(boxes_xyxy: Array, others_xyxy: Array) -> FloatArray:
    """Give the IoU of every pair: float32 ``[n, m]`` of boxes ``[n, 4]`` and ``[m, 4]``, XYXY.

    Two boxes without area (a mask of one pixel or line has such a box) have IoU NaN.
    """
    a = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 1, 4)
    b = np.asarray(others_xyxy, dtype=np.float32).reshape(1, -1, 4)
    overlap_wh = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    overlap = np.maximum(overlap_wh, np.float32(0)).prod(axis=-1)
    union = _areas(a) + _areas(b) - overlap
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(overlap / union, dtype=np.float32)


def _areas(boxes_xyxy: FloatArray) -> FloatArray:
    """Areas of boxes ``[..., 4]`` without the +1 of inclusive pixels (torchvision box_area)."""
    sides = boxes_xyxy[..., 2:] - boxes_xyxy[..., :2]
    return np.asarray(sides[..., 0] * sides[..., 1], dtype=np.float32)


def nms(boxes_xyxy: Array, scores: Array, threshold: float) -> IntArray:
    """Give the indices of the kept boxes, best score first.

    A box is dropped if its IoU with a kept one is *above* the threshold; the float32 IoU is
    compared in double precision, and a NaN IoU drops nothing.  Equal scores keep the order of
    the input.  Source: torchvision ops/cpu/nms_kernel.cpp, used by
    segment-anything automatic_mask_generator.py:251-257.
    """
    boxes = np.asarray(boxes_xyxy, dtype=np.float32).reshape(-1, 4)
    waiting = np.argsort(-np.asarray(scores), kind="stable")
    kept: list[int] = []
    while waiting.size:
        best, waiting = waiting[0], waiting[1:]
        kept.append(int(best))
        iou = box_iou(boxes[best], boxes[waiting])[0].astype(np.float64)
        waiting = waiting[~(iou > threshold)]
    return np.array(kept, dtype=np.int64)
