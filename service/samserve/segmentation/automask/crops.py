"""Crop boxes of AutoMask and the grid points of each crop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from samserve.core import geometry, grid
from samserve.segmentation.automask.options import AutoMaskOptions, PointGrid
from samserve.types import Box, Size


@dataclass(frozen=True, slots=True, eq=False)
class CropPlan:
    """One crop: its box XYXY in image pixels, and points float64 ``[K, 2]`` in crop pixels."""

    box: tuple[int, int, int, int]
    points: PointGrid

    @property
    def size(self) -> Size:
        """Height and width of the crop."""
        x_min, y_min, x_max, y_max = self.box
        return Size(y_max - y_min, x_max - x_min)

    @property
    def origin(self) -> tuple[int, int]:
        """Top-left corner (x, y) in image pixels."""
        return self.box[:2]


def plan_crops(image: Size, options: AutoMaskOptions) -> list[CropPlan]:
    """Return the crops with their points in the reference's order, the whole image first.

    Crops without a point inside the region of interest are omitted, except the whole image.
    """
    grids = _grids(options)
    crops = [
        CropPlan(box, _points(grids[layer], box, options.region_of_interest))
        for layer, box in geometry.crop_boxes(
            image, options.crop_n_layers, options.crop_overlap_ratio
        )
    ]
    return [crop for index, crop in enumerate(crops) if index == 0 or len(crop.points)]


def _grids(options: AutoMaskOptions) -> list[PointGrid]:
    if options.point_grids:
        return list(options.point_grids)
    return grid.layer_grids(
        options.points_per_side, options.crop_n_layers, options.crop_n_points_downscale_factor
    )


def _points(
    unit_points: PointGrid, box: tuple[int, int, int, int], region: Box | None
) -> PointGrid:
    x_min, y_min, x_max, y_max = box
    points = unit_points * np.array([x_max - x_min, y_max - y_min], dtype=np.float64)
    if region is None:
        return points
    x, y = points[:, 0] + x_min, points[:, 1] + y_min
    inside = (region.x_min <= x) & (x <= region.x_max) & (region.y_min <= y) & (y <= region.y_max)
    return points[inside]
