"""Changes of masks on request: clipping, and removal of small holes and islands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from samserve.core.masks import BoxXyxy
from samserve.types import Array, BoolArray, Box


@dataclass(frozen=True, slots=True)
class MaskChanges:
    """What a client wants to be changed in masks, in this order.

    ``clip_to_box`` removes pixels whose centres are outside of the prompt's box; then holes, and
    then islands, of fewer pixels than the areas are filled and removed.
    """

    clip_to_box: bool = False
    min_hole_area: int = 0
    min_island_area: int = 0

    def __bool__(self) -> bool:
        """Return whether anything may change."""
        return self.clip_to_box or self.min_hole_area > 0 or self.min_island_area > 0


def change(mask: BoolArray, extent: BoxXyxy, changes: MaskChanges, box: Box | None) -> None:
    """Change a mask, bool ``[h, w]``, in place.

    *extent* are the extreme pixels of the mask; *box*, in image pixels, is that of the prompt.
    Unlike those of `remove_small_regions`, holes are surrounded by the mask: background at the
    border of the image is none.
    """
    x_min, y_min, x_max, y_max = extent
    if changes.clip_to_box and box is not None:
        left, top = _first_centre(box.x_min), _first_centre(box.y_min)
        right, bottom = _first_centre(box.x_max), _first_centre(box.y_max)
        mask[:top] = mask[bottom:] = mask[:, :left] = mask[:, right:] = False
    # Holes and islands are inside the extent, so only this part is searched.
    part = mask[y_min : y_max + 1, x_min : x_max + 1]
    if not part.any():
        return
    if changes.min_hole_area > 0:
        filled, _ = remove_small_regions(part, changes.min_hole_area, "holes", at_border=False)
        part[:] = filled
    if changes.min_island_area > 0:
        part[:], _ = remove_small_regions(part, changes.min_island_area, "islands")


def _first_centre(position: float) -> int:
    """Return the index of the first pixel whose centre is at or after a position from 0."""
    return math.ceil(position - 0.5)


def remove_small_regions(
    mask: BoolArray,
    area_thresh: float,
    mode: Literal["holes", "islands"],
    *,
    at_border: bool = True,
) -> tuple[BoolArray, bool]:
    """Fill holes or remove islands of fewer than *area_thresh* pixels; return if that changed it.

    *mask* is bool ``[h, w]`` and is not modified.  Regions are 8-connected, background
    included.  If every island is small, the largest (the first of equals) is kept.  Regions *at
    the border* are excluded on request.
    Source: segment-anything utils/amg.py:267-291.
    """
    fill_holes = mode == "holes"
    labelled = (mask ^ fill_holes).astype(np.uint8)
    count, regions, stats, _ = cv2.connectedComponentsWithStats(labelled, connectivity=8)
    sizes = stats[1:, cv2.CC_STAT_AREA]  # label 0 is the background of the labelled mask
    small = sizes < area_thresh
    if not at_border:
        small &= _inside(stats[1:], mask.shape)
    if not small.any():
        return mask, False
    keep = np.zeros(count, dtype=np.bool_)
    keep[0] = fill_holes
    keep[1:] = small if fill_holes else ~small
    if not keep.any():
        keep[1 + int(np.argmax(sizes))] = True
    return keep[regions], True


def connected_to(mask: BoolArray, seeds: BoolArray) -> BoolArray:
    """Return the 8-connected regions of a mask that have pixels of *seeds*; bool ``[h, w]``."""
    count, regions = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    keep = np.zeros(count, dtype=np.bool_)
    keep[np.unique(regions[seeds & mask])] = True
    connected: BoolArray = keep[regions]
    return connected


def _inside(stats: Array, shape: tuple[int, ...]) -> BoolArray:
    """Return which regions, by their ``stats`` of OpenCV, do not touch the border."""
    left, top, width, height, _ = stats.T
    rows, columns = shape
    inside: BoolArray = (left > 0) & (top > 0) & (left + width < columns) & (top + height < rows)
    return inside
