"""Removal of small holes and islands from a mask."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np

from samserve.types import BoolArray


def remove_small_regions(
    mask: BoolArray, area_thresh: float, mode: Literal["holes", "islands"]
) -> tuple[BoolArray, bool]:
    """Fill holes or remove islands of fewer than *area_thresh* pixels; return if that changed it.

    *mask* is bool ``[h, w]`` and is not modified.  Regions are 8-connected, background
    included.  If every island is small, the largest (the first of equals) is kept.
    Source: segment-anything utils/amg.py:267-291.
    """
    fill_holes = mode == "holes"
    labelled = (mask ^ fill_holes).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(labelled, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]  # label 0 is the background of the labelled mask
    small = sizes < area_thresh
    if not small.any():
        return mask, False
    keep = np.zeros(count, dtype=np.bool_)
    keep[0] = fill_holes
    keep[1:] = small if fill_holes else ~small
    if not keep.any():
        keep[1 + int(np.argmax(sizes))] = True
    return keep[regions], True
