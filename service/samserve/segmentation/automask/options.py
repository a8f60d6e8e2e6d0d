"""Parameters of AutoMask, by the names and defaults of the reference generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.types import Box

PointGrid = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class AutoMaskOptions:
    """How to search; see `AutoMaskOptions` in the protocol for meanings and ranges.

    Source: segment_anything/automatic_mask_generator.py:36-52.  Ours are ``point_grids`` given as
    float64 ``[K, 2]`` in 0..1 for each layer, ``region_of_interest`` and ``max_masks`` (0: all).
    """

    points_per_side: int = 32
    points_per_batch: int = 64
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: tuple[PointGrid, ...] = ()
    min_mask_region_area: int = 0
    region_of_interest: Box | None = None
    max_masks: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Scalar parameters by name."""
        return {
            name: getattr(self, name)
            for name in self.__slots__
            if name not in ("point_grids", "region_of_interest")
        }
