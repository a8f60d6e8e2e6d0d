"""Parameters of AutoMask, with the names of the reference generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.models.families.base import AutoMaskDefaults, Family
from samserve.types import Box

PointGrid = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoMaskOptions(AutoMaskDefaults):
    """Parameters; see `AutoMaskOptions` in the protocol for meanings and ranges.

    Source: segment_anything/automatic_mask_generator.py:36-52.  Additions of samserve are
    ``point_grids`` (float64 ``[K, 2]`` in 0..1 per layer), ``region_of_interest`` and
    ``max_masks`` (0: all).
    """

    crop_n_layers: int = 0
    min_mask_region_area: int = 0
    max_masks: int = 0
    point_grids: tuple[PointGrid, ...] = ()
    region_of_interest: Box | None = None

    @classmethod
    def of(cls, family: Family, overrides: Mapping[str, Any]) -> AutoMaskOptions:
        """Return *overrides* completed by the defaults of a family."""
        return cls(**{**asdict(family.automask), **overrides})
