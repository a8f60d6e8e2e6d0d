"""Measures of masks."""

from __future__ import annotations

import cv2
import numpy as np

from samserve.tuning.prompts import PADDING
from samserve.types import Array

PIXELS_PER_LOGIT = 4
"""Model pixels of a low-resolution logit, along a side."""


def mask_iou(masks: Array, goals: Array) -> Array:
    """Return the IoU of logits or masks (above 0) and goals, broadcast, over the last two axes."""
    chosen, goal = masks > 0, goals > 0
    common = (chosen & goal).sum((-2, -1))
    return np.asarray(common / np.maximum((chosen | goal).sum((-2, -1)), 1))


def widest_error(
    mask: Array, goal: Array, scale: float = PIXELS_PER_LOGIT
) -> tuple[tuple[float, float], int]:
    """Return the centre (x, y) of a mask's widest error, and the true label.

    *scale* is the side of the mask's pixels in the result: by default, low-resolution masks give
    model pixels.
    """
    wrong = np.pad(mask != goal, 1).astype(np.uint8)
    depth = cv2.distanceTransform(wrong, cv2.DIST_L2, 3)[1:-1, 1:-1]
    if not depth.any():
        return (0.0, 0.0), PADDING
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = (float(value + 0.5) * scale for value in (column, row))
    return (x, y), int(goal[row, column])
