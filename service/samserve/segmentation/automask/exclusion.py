"""The filter `exclude`: drops what is annotated already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from samserve.core.overlap import IndexedMask
from samserve.core.run_lengths import IntArray
from samserve.segmentation.automask.candidates import Candidate
from samserve.segmentation.automask.options import AutoMaskOptions

FloatArray64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Exclusion:
    """The excluded masks, without empty ones; ``extents`` int64 ``[n, 4]`` are their windows.

    A candidate is dropped if its overlap with one of them is above ``threshold``: the IoU, or with
    ``parts`` the fraction of the candidate's pixels that are inside the mask, which is never less.
    """

    masks: tuple[IndexedMask, ...]
    extents: IntArray
    areas: IntArray
    threshold: float
    parts: bool

    @classmethod
    def of(cls, options: AutoMaskOptions) -> Exclusion:
        """Index the masks of the options, which have been validated."""
        indexed = (IndexedMask.of(each) for each in options.exclude)
        masks = tuple(each for each in indexed if each.area)
        extents = np.array([each.extent for each in masks], dtype=np.int64).reshape(-1, 4)
        areas = np.array([each.area for each in masks], dtype=np.int64)
        return cls(masks, extents, areas, options.exclude_iou_thresh, options.exclude_parts)

    def remaining(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Return the candidates that are not excluded."""
        return [each for each in candidates if not self._drops(each)]

    def remaining_cleaned(
        self, cleaned: Sequence[tuple[Candidate, bool]]
    ) -> list[tuple[Candidate, bool]]:
        """Return the results of `filters.remove_small_regions` that are not excluded.

        Unchanged ones have been compared before.
        """
        return [pair for pair in cleaned if not (pair[1] and self._drops(pair[0]))]

    def _drops(self, candidate: Candidate) -> bool:
        if not candidate.area:
            return False
        highest = self._highest_overlaps(candidate)
        # Most candidates end here: their pixels are needed for no comparison.
        possible = np.flatnonzero(highest > self.threshold)
        if not len(possible):
            return False
        pixels = candidate.intervals()
        order = possible[np.argsort(-highest[possible], kind="stable")]
        return any(
            self._overlap(candidate.area, mask.area, mask.common_pixels(pixels)) > self.threshold
            for mask in (self.masks[index] for index in order.tolist())
        )

    def _highest_overlaps(self, candidate: Candidate) -> FloatArray64:
        """Return the highest overlaps, float64 ``[n]``, that boxes and areas allow."""
        x_min, y_min, x_max, y_max = (int(side) for side in candidate.box)
        left, top, right, bottom = self.extents.T
        # The sides of a candidate's box are inclusive.
        width = np.minimum(right, x_max + 1) - np.maximum(left, x_min)
        height = np.minimum(bottom, y_max + 1) - np.maximum(top, y_min)
        within = np.maximum(width, 0) * np.maximum(height, 0)
        common = np.minimum(within, np.minimum(self.areas, candidate.area))
        if self.parts:
            return np.asarray(common / candidate.area, dtype=np.float64)
        return np.asarray(common / (self.areas + candidate.area - common), dtype=np.float64)

    def _overlap(self, area: int, excluded: int, common: int) -> float:
        return common / area if self.parts else common / (area + excluded - common)
