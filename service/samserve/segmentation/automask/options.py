"""Parameters of AutoMask, with the names of the reference generator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from samserve.models.families.base import AutoMaskDefaults, Family
from samserve.types import Box, CocoRle, FloatArray, HqMode, MaskSelection, Multimask

PointGrid = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class AutoMaskOptions(AutoMaskDefaults):
    """Parameters; see `AutoMaskOptions` in the protocol for meanings and ranges.

    Sources: segment_anything/automatic_mask_generator.py:36-52; ``use_m2m`` and
    ``multimask_output`` are those of sam2/automatic_mask_generator.py, ``hq_mode`` is that of
    segment-anything-hq.  Additions of samserve are ``point_grids`` (float64 ``[K, 2]`` in 0..1 per
    layer), ``region_of_interest``, ``max_masks`` (0: all), and ``exclude`` with the two options of
    its comparison.
    """

    multimask_output: bool = True
    use_m2m: bool = False
    hq_mode: HqMode | None = None
    crop_n_layers: int = 0
    min_mask_region_area: int = 0
    max_masks: int = 0
    point_grids: tuple[PointGrid, ...] = ()
    region_of_interest: Box | None = None
    exclude: tuple[CocoRle, ...] = ()
    exclude_iou_thresh: float = 0.7
    exclude_parts: bool = False

    @classmethod
    def of(cls, family: Family, overrides: Mapping[str, Any]) -> AutoMaskOptions:
        """Return *overrides* completed by the defaults of a family."""
        return cls(**{**asdict(family.automask), **overrides})

    def selection(self, family: Family) -> MaskSelection:
        """Return the masks that are candidates for each point."""
        multimask = Multimask.ALL if self.multimask_output else family.automask_single
        return MaskSelection(multimask, self.hq_mode)

    def iou_threshold(self, family: Family, selection: MaskSelection) -> FloatArray | None:
        """Return the decoder's thresholds: no masks of a prompt whose candidates all fail.

        Float32 ``[T]``, None if none can fail.  The filter of predicted IoU may be stricter.
        """
        if self.pred_iou_thresh <= 0:
            return None
        threshold = np.full(family.mask_tokens, np.inf, dtype=np.float32)
        threshold[list(family.candidate_tokens(selection))] = np.float32(self.pred_iou_thresh)
        return threshold

    def refined_selection(self, family: Family) -> MaskSelection:
        """Return the mask that replaces a candidate with ``use_m2m``."""
        return MaskSelection(family.automask_single, self.hq_mode)
