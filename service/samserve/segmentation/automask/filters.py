"""The mask filters of AutoMask: pure computation, run in worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samserve.core import geometry, mask_formats, masks, nms, regions, rle
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.models.families.base import Family, MaskChoice
from samserve.segmentation.automask.crops import CropPlan
from samserve.segmentation.automask.events import AutoMaskRecord, FilterCount
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.types import (
    Array,
    BoolArray,
    CocoRle,
    FloatArray,
    Mask,
    MaskFormat,
    MaskSelection,
    ModelInfo,
    Segmentation,
    Size,
)


@dataclass(frozen=True, slots=True, eq=False)
class CropView:
    """One crop: its plan and the upsampling of low-res logits to its pixels."""

    family: Family
    model: ModelInfo
    plan: CropPlan
    image: Size
    upsampling: masks.Upsampling


@dataclass(frozen=True, slots=True, eq=False)
class DeferredMask:
    """A mask that is not upsampled yet: low-res logits float32 ``[L, L]`` of a crop."""

    low_res: FloatArray
    view: CropView

    def image_mask(self) -> BoolArray:
        """Upsample, threshold and place in the image: bool ``[h, w]``."""
        level = self.view.family.mask_threshold
        crop_mask = masks.binary_mask(self.low_res, self.view.upsampling, level=level)
        if crop_mask.shape == (self.view.image.height, self.view.image.width):
            return crop_mask
        x_min, y_min, x_max, y_max = self.view.plan.box
        placed = np.zeros((self.view.image.height, self.view.image.width), dtype=np.bool_)
        placed[y_min:y_max, x_min:x_max] = crop_mask
        return placed


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

    def segmentation(self, mask_format: MaskFormat) -> Segmentation:
        """Return the mask over the image in *mask_format*."""
        if isinstance(self.pixels, CocoRle) and mask_format is MaskFormat.COCO_RLE:
            return self.pixels
        return mask_formats.encode(self.mask(), mask_format)


@dataclass(frozen=True, slots=True, eq=False)
class DecodedBatch:
    """Prompts of one run of the decoder, its output, and the masks that are candidates.

    ``points`` is the prompts' point each, float64 ``[P, 2]`` in crop pixels; ``evaluated`` is the
    number of grid points that are finished with this batch.
    """

    prompts: PromptBatch
    output: DecoderOutput
    points: Array
    selection: MaskSelection
    evaluated: int

    def choices(self, view: CropView) -> list[tuple[int, MaskChoice]]:
        """Return the rows of the batch with each of their candidates."""
        iou, logits = self.output.predicted_iou, self.output.low_res_logits
        choose, dynamic = view.family.choose, view.model.dynamic_multimask
        return [
            (row, choice)
            for row, labels in enumerate(self.prompts.point_labels)
            for choice in choose(self.selection, labels, iou[row], logits[row], dynamic)
        ]


def mask_prompts(
    batch: DecodedBatch, choices: Sequence[tuple[int, MaskChoice]], view: CropView
) -> PromptBatch:
    """Return candidates of a batch, by their rows, as prompts: their points and their own masks.

    Masks are limited as those that are returned to clients.
    """
    rows, limit = [row for row, _ in choices], view.family.max_returned_logit
    own = np.stack([choice.logits(batch.output.low_res_logits[row]) for row, choice in choices])
    np.clip(own, -limit, limit, out=own)
    prompts = batch.prompts
    return PromptBatch(prompts.point_coords[rows], prompts.point_labels[rows], own)


@dataclass(frozen=True, slots=True, eq=False)
class FilteredBatch:
    """The remaining candidates of one batch of ``points`` points, and the counts per filter."""

    points: int
    candidates: list[Candidate]
    counts: tuple[FilterCount, ...]


def filter_batch(batch: DecodedBatch, view: CropView, options: AutoMaskOptions) -> FilteredBatch:
    """Filter one batch by predicted IoU, stability and crop edge.

    Predicted IoU goes first because it needs no mask; only remaining candidates are upsampled (the
    result is that of automatic_mask_generator.py:266-322, which upsamples everything).
    """
    family, output = view.family, batch.output
    choices = batch.choices(view)
    iou = np.array([output.predicted_iou[row, each.iou_token] for row, each in choices], np.float32)
    passed = np.flatnonzero(_passes_iou(iou, family, options)).tolist()
    candidates: list[Candidate] = []
    stable_count = 0
    for index in passed:
        row, choice = choices[index]
        low_res = choice.logits(output.low_res_logits[row])
        summary = masks.summarize(
            low_res,
            view.upsampling,
            level=family.mask_threshold,
            offset=options.stability_score_offset,
        )
        if not _passes_stability(summary.stability, family, options):
            continue
        stable_count += 1
        if _touches_crop_edge(summary, view):
            continue
        point = batch.points[row]
        candidates.append(_candidate(low_res, float(iou[index]), summary, point, view))
    counts = (
        FilterCount("pred_iou", len(choices), len(passed)),
        FilterCount("stability_score", len(passed), stable_count),
        FilterCount("crop_edge", stable_count, len(candidates)),
    )
    return FilteredBatch(batch.evaluated, candidates, counts)


def _passes_iou(iou: FloatArray, family: Family, options: AutoMaskOptions) -> BoolArray:
    if options.pred_iou_thresh <= 0:
        return np.ones(iou.shape, dtype=np.bool_)
    return np.asarray(family.iou_passes(iou, np.float32(options.pred_iou_thresh)), dtype=np.bool_)


def _passes_stability(stability: float, family: Family, options: AutoMaskOptions) -> bool:
    if options.stability_score_thresh <= 0:
        return True
    # In float32, as the reference compares.
    threshold = np.float32(options.stability_score_thresh)
    return bool(family.stability_passes(np.float32(stability), threshold))


def _touches_crop_edge(summary: masks.MaskSummary, view: CropView) -> bool:
    box = np.array([summary.box_xyxy], dtype=np.float64)
    return bool(geometry.near_crop_edge(box, view.plan.box, view.image)[0])


def _candidate(
    low_res: FloatArray,
    iou: float,
    summary: masks.MaskSummary,
    point: Array,
    view: CropView,
) -> Candidate:
    x, y = view.plan.origin
    x_min, y_min, x_max, y_max = summary.box_xyxy
    return Candidate(
        box=(float(x_min + x), float(y_min + y), float(x_max + x), float(y_max + y)),
        area=summary.area,
        predicted_iou=iou,
        stability_score=summary.stability,
        point=(float(point[0] + x), float(point[1] + y)),
        crop=view.plan,
        # A copy: a view would keep the logits of the whole batch alive.
        pixels=DeferredMask(low_res.copy(), view),
    )


def spill_to_rle(candidates: list[Candidate], max_deferred: int) -> list[Candidate]:
    """Bound memory: convert logits to run lengths if more than *max_deferred* candidates have them.

    Logits are kept as long as possible because most candidates never need run lengths.
    """
    deferred = sum(isinstance(candidate.pixels, DeferredMask) for candidate in candidates)
    if deferred <= max_deferred:
        return candidates
    return [
        candidate
        if isinstance(candidate.pixels, CocoRle)
        else replace(candidate, pixels=rle.encode(candidate.pixels.image_mask()))
        for candidate in candidates
    ]


def suppress_in_crop(candidates: Sequence[Candidate], options: AutoMaskOptions) -> list[Candidate]:
    """Drop masks that overlap one of higher predicted IoU (automatic_mask_generator.py:251-257)."""
    scores = np.array([candidate.predicted_iou for candidate in candidates], dtype=np.float32)
    kept = nms.nms(_boxes(candidates), scores, options.box_nms_thresh)
    return [candidates[index] for index in kept]


def suppress_across_crops(
    candidates: Sequence[Candidate], options: AutoMaskOptions
) -> list[Candidate]:
    """Prefer masks from smaller crops (automatic_mask_generator.py:210-220)."""
    scores = np.array([1 / candidate.crop.size.pixels for candidate in candidates])
    kept = nms.nms(_boxes(candidates), scores.astype(np.float32), options.crop_nms_thresh)
    return [candidates[index] for index in kept]


def remove_small_regions(
    candidates: Sequence[Candidate], options: AutoMaskOptions
) -> list[Candidate]:
    """Fill small holes and drop small islands, then suppress again, unchanged masks first.

    Source: automatic_mask_generator.py:324-372; quality estimates are not computed again.
    """
    cleaned = [_remove_regions(candidate, options.min_mask_region_area) for candidate in candidates]
    scores = np.array([float(not changed) for _, changed in cleaned], dtype=np.float32)
    results = [candidate for candidate, _ in cleaned]
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    kept = nms.nms(_boxes(results), scores, threshold)
    return [results[index] for index in kept]


def _remove_regions(candidate: Candidate, min_area: int) -> tuple[Candidate, bool]:
    mask, holes = regions.remove_small_regions(candidate.mask(), min_area, "holes")
    mask, islands = regions.remove_small_regions(mask, min_area, "islands")
    if not (holes or islands):
        return candidate, False
    x_min, y_min, x_max, y_max = masks.mask_to_box(mask)
    changed = replace(
        candidate,
        box=(float(x_min), float(y_min), float(x_max), float(y_max)),
        area=int(np.count_nonzero(mask)),
        pixels=rle.encode(mask),
    )
    return changed, True


def keep_best(candidates: Sequence[Candidate], options: AutoMaskOptions) -> list[Candidate]:
    """Return the ``max_masks`` candidates of highest predicted IoU, in their order."""
    scores = np.array([-candidate.predicted_iou for candidate in candidates])
    kept = sorted(np.argsort(scores, kind="stable")[: options.max_masks].tolist())
    return [candidates[index] for index in kept]


def to_record(candidate: Candidate, mask_format: MaskFormat) -> AutoMaskRecord:
    """Return a candidate with encoded pixels and the fields of an SA-1B annotation."""
    return AutoMaskRecord(
        mask=Mask(
            segmentation=candidate.segmentation(mask_format),
            area=candidate.area,
            bbox=geometry.xyxy_to_xywh(candidate.box),
            predicted_iou=candidate.predicted_iou,
            stability_score=candidate.stability_score,
        ),
        point=candidate.point,
        crop_box=geometry.xyxy_to_xywh(candidate.crop.box),
    )


def _boxes(candidates: Sequence[Candidate]) -> Array:
    return np.array([candidate.box for candidate in candidates], dtype=np.float64).reshape(-1, 4)
