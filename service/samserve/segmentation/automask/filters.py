"""The mask filters of AutoMask: pure computation, run in worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from samserve.core import geometry, masks, nms, regions, rle
from samserve.core.upsampling import BoxedLogits
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.models.families.base import Family, MaskChoice
from samserve.segmentation.automask.candidates import Candidate, CropView, DeferredMask
from samserve.segmentation.automask.events import FilterCount
from samserve.segmentation.automask.exclusion import Exclusion
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.types import (
    Array,
    BoolArray,
    FloatArray,
    MaskSelection,
)

_PIXELS_PER_PIECE = 128 << 20
"""Pixels of the image of all masks in one piece; a mask takes at most some 0.3 ns for each."""
_MIN_PIXELS_PER_MASK = 8 << 20
"""What a mask counts at least: that of a small image takes 1 or 2 ms too."""


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


@dataclass(frozen=True, slots=True, eq=False)
class Passed:
    """A candidate that has passed the filter of predicted IoU: row, mask, and predicted IoU."""

    row: int
    choice: MaskChoice
    iou: float


@dataclass(frozen=True, slots=True, eq=False)
class FilteredPiece:
    """The remaining candidates of some that have passed, and how many were left by each filter.

    ``excluded`` is the number of those that an exclusion has dropped; None without one.
    """

    candidates: list[Candidate]
    stable: int
    excluded: int | None


def passed_iou(
    batch: DecodedBatch, view: CropView, options: AutoMaskOptions
) -> tuple[list[Passed], FilterCount]:
    """Filter one batch by predicted IoU, first because that needs no mask."""
    family, output = view.family, batch.output
    choices = batch.choices(view)
    iou = np.array([output.predicted_iou[row, each.iou_token] for row, each in choices], np.float32)
    indices = np.flatnonzero(_passes_iou(iou, family, options)).tolist()
    passed = [Passed(*choices[index], float(iou[index])) for index in indices]
    return passed, FilterCount("pred_iou", len(choices), len(passed))


def pieces(passed: Sequence[Passed], view: CropView) -> list[Sequence[Passed]]:
    """Divide candidates into pieces of work that end within some 50 ms.

    So a call that ends stops soon, and calls of other tenants get their turn.
    """
    pixels = max(view.plan.size.pixels, _MIN_PIXELS_PER_MASK)
    size = max(_PIXELS_PER_PIECE // pixels, 1)
    return [passed[start : start + size] for start in range(0, len(passed), size)]


def filter_piece(
    batch: DecodedBatch,
    passed: Sequence[Passed],
    view: CropView,
    options: AutoMaskOptions,
    exclusion: Exclusion | None,
) -> FilteredPiece:
    """Filter candidates by stability, crop edge and exclusion, upsampling only these.

    The result is that of automatic_mask_generator.py:266-322, which upsamples everything, and has
    no exclusion.
    """
    family, offset = view.family, options.stability_score_offset
    candidates: list[Candidate] = []
    stable = 0
    for each in passed:
        low_res = each.choice.logits(batch.output.low_res_logits[each.row])
        summary = masks.summarize(
            low_res, view.upsampling, level=family.mask_threshold, offset=offset
        )
        if not _passes_stability(summary.stability, family, options):
            continue
        stable += 1
        if not _touches_crop_edge(summary, view):
            point = batch.points[each.row]
            candidates.append(_candidate(low_res, each.iou, summary, point, view))
    if exclusion is None:
        return FilteredPiece(candidates, stable, None)
    remaining = exclusion.remaining(candidates)
    return FilteredPiece(remaining, stable, len(candidates) - len(remaining))


def filtered_batch(
    batch: DecodedBatch, first: FilterCount, filtered: Sequence[FilteredPiece]
) -> FilteredBatch:
    """Return the result for a batch from those of its pieces."""
    candidates = [candidate for each in filtered for candidate in each.candidates]
    stable = sum(each.stable for each in filtered)
    whole = len(candidates) + sum(each.excluded or 0 for each in filtered)
    counts = [
        first,
        FilterCount("stability_score", first.count_out, stable),
        FilterCount("crop_edge", stable, whole),
    ]
    if any(each.excluded is not None for each in filtered):
        counts.append(FilterCount("exclude", whole, len(candidates)))
    return FilteredBatch(batch.evaluated, candidates, tuple(counts))


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
        pixels=DeferredMask(BoxedLogits.of(low_res, view.upsampling, summary.box_xyxy), view),
    )


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


def suppress_cleaned(
    cleaned: Sequence[tuple[Candidate, bool]], options: AutoMaskOptions
) -> list[Candidate]:
    """Suppress the results of `remove_small_regions` again, unchanged masks first.

    Source: automatic_mask_generator.py:324-372; quality estimates are not computed again.
    """
    scores = np.array([float(not changed) for _, changed in cleaned], dtype=np.float32)
    results = [candidate for candidate, _ in cleaned]
    threshold = max(options.box_nms_thresh, options.crop_nms_thresh)
    kept = nms.nms(_boxes(results), scores, threshold)
    return [results[index] for index in kept]


def remove_small_regions(candidate: Candidate, min_area: int) -> tuple[Candidate, bool]:
    """Fill small holes of a mask and drop small islands; return whether that changed it."""
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


def _boxes(candidates: Sequence[Candidate]) -> Array:
    return np.array([candidate.box for candidate in candidates], dtype=np.float64).reshape(-1, 4)
