"""Candidates of AutoMask: masks that are kept as logits for as long as possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samserve.core import geometry, intervals, mask_formats, masks, rle, run_lengths
from samserve.core.run_lengths import IntArray
from samserve.core.upsampling import BoxedLogits, Upsampling
from samserve.models.families.base import Family
from samserve.segmentation.automask.crops import CropPlan
from samserve.segmentation.automask.events import AutoMaskRecord
from samserve.types import (
    BoolArray,
    CocoRle,
    Mask,
    MaskFormat,
    ModelInfo,
    NoPixels,
    PolygonOptions,
    Segmentation,
    Size,
)

_POLYGONS = PolygonOptions()


@dataclass(frozen=True, slots=True, eq=False)
class CropView:
    """One crop: its plan and the upsampling of low-res logits to its pixels."""

    family: Family
    model: ModelInfo
    plan: CropPlan
    image: Size
    upsampling: Upsampling

    @property
    def fills_image(self) -> bool:
        """Return whether the crop is the whole image."""
        return self.plan.size == self.image


@dataclass(frozen=True, slots=True, eq=False)
class DeferredMask:
    """A mask that is not upsampled yet: low-res logits of a crop."""

    logits: BoxedLogits
    view: CropView

    def traced(self) -> masks.TracedMask:
        """Return the mask over the crop."""
        level = self.view.family.mask_threshold
        return masks.trace(self.logits.low_res(), self.view.upsampling, level=level)

    def image_mask(self) -> BoolArray:
        """Upsample, threshold and place in the image: bool ``[h, w]``."""
        crop_mask = self.traced().pixels()
        if self.view.fills_image:
            return crop_mask
        x_min, y_min, x_max, y_max = self.view.plan.box
        placed = np.zeros((self.view.image.height, self.view.image.width), dtype=np.bool_)
        placed[y_min:y_max, x_min:x_max] = crop_mask
        return placed

    def intervals(self) -> IntArray:
        """Return the intervals of the mask over the image, in its pixels."""
        plan, image = self.view.plan, self.view.image
        found = intervals.from_runs(self.traced().runs())
        if self.view.fills_image:
            return found
        left, top = plan.origin
        return intervals.shifted(found, plan.size, left, top, image)

    def segmentation(self, mask_format: MaskFormat, polygons: PolygonOptions) -> Segmentation:
        """Return the mask over the image in *mask_format*."""
        if mask_format is MaskFormat.BOX:
            return NoPixels(self.view.image)
        mask = self.traced() if self.view.fills_image else self.image_mask()
        return mask_formats.encode(mask, mask_format, polygons)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One mask: its box XYXY and point in image pixels, and its pixels as logits or run lengths."""

    box: tuple[float, float, float, float]
    area: int
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]
    crop: CropPlan
    pixels: DeferredMask | CocoRle

    def mask(self) -> BoolArray:
        """Return the mask over the image, bool ``[h, w]``."""
        if isinstance(self.pixels, CocoRle):
            return rle.decode(self.pixels)
        return self.pixels.image_mask()

    def intervals(self) -> IntArray:
        """Return the intervals of the mask over the image, int64 ``[n, 2]``."""
        if isinstance(self.pixels, CocoRle):
            return run_lengths.intervals(self.pixels)
        return self.pixels.intervals()

    def segmentation(
        self, mask_format: MaskFormat, polygons: PolygonOptions = _POLYGONS
    ) -> Segmentation:
        """Return the mask over the image in *mask_format*, for which *polygons* may be options."""
        if isinstance(self.pixels, DeferredMask):
            return self.pixels.segmentation(mask_format, polygons)
        if mask_format is MaskFormat.COCO_RLE:
            return self.pixels
        if mask_format is MaskFormat.BOX:
            return NoPixels(self.pixels.size)
        return mask_formats.encode(self.mask(), mask_format, polygons)


def over_budget(candidates: Sequence[Candidate], max_bytes: int) -> list[int]:
    """Return the candidates, by index, that become run lengths to keep logits in *max_bytes*.

    Those with the most logits: most candidates never need run lengths.
    """
    sizes = {
        index: candidate.pixels.logits.nbytes
        for index, candidate in enumerate(candidates)
        if isinstance(candidate.pixels, DeferredMask)
    }
    chosen: list[int] = []
    excess = sum(sizes.values()) - max_bytes
    for index in sorted(sizes, key=lambda each: -sizes[each]):
        if excess <= 0:
            break
        chosen.append(index)
        excess -= sizes[index]
    return chosen


def with_run_lengths(candidate: Candidate) -> Candidate:
    """Return a candidate whose logits are replaced by run lengths."""
    pixels = candidate.segmentation(MaskFormat.COCO_RLE)
    assert isinstance(pixels, CocoRle)
    return replace(candidate, pixels=pixels)


def to_record(
    candidate: Candidate, mask_format: MaskFormat, polygons: PolygonOptions = _POLYGONS
) -> AutoMaskRecord:
    """Return a candidate with encoded pixels and the fields of an SA-1B annotation."""
    return AutoMaskRecord(
        mask=Mask(
            segmentation=candidate.segmentation(mask_format, polygons),
            area=candidate.area,
            bbox=geometry.xyxy_to_xywh(candidate.box),
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
        ),
        point=candidate.point,
        crop_box=geometry.xyxy_to_xywh(candidate.crop.box),
    )
