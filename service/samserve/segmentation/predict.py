"""The Predict use case: from prompts on one image to masks in image pixels."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice

import numpy as np

from samserve.context import RequestContext
from samserve.core import geometry, mask_formats, masks, regions
from samserve.core.regions import MaskChanges
from samserve.engines.base import DecoderOutput, Engine
from samserve.errors import ResponseTooLarge
from samserve.models import families
from samserve.models.families.base import Family, ImageTransform, MaskChoice
from samserve.scheduling.offload import Work, is_quick, mask_work
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.prompts import (
    PromptGroup,
    batch_prompts,
    check_prompts,
    check_selection,
    with_logits,
)
from samserve.segmentation.sources import LeaseOptions, Source
from samserve.types import (
    BinaryMask,
    BoolArray,
    Box,
    FloatArray,
    Mask,
    MaskFormat,
    MaskSelection,
    ModelInfo,
    PolygonOptions,
    Prompt,
    Size,
)

_WITHOUT_LOGITS = "OUTPUT_MODE_COCO_RLE"
_COSTLY = 8
"""How much more PNG files and changes of masks count than run lengths: with a margin for images
that are not large, for which alone it decides.  Masks of large images are long work anyway."""


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What to return for each prompt; without a mask format, nothing is upsampled."""

    selection: MaskSelection = field(default_factory=MaskSelection)
    mask_format: MaskFormat | None = MaskFormat.COCO_RLE
    low_res_logits: bool = False
    max_logits_bytes: int = 64 << 20
    polygons: PolygonOptions = field(default_factory=PolygonOptions)
    changes: MaskChanges = field(default_factory=MaskChanges)

    def work(self, pixels: int) -> Work:
        """Return where to upsample and encode masks that have *pixels* pixels together."""
        if self.mask_format is MaskFormat.POLYGONS:
            # How long it takes depends on the length of the outline.
            return Work.LONG
        costly = self.mask_format is MaskFormat.PNG or self.changes
        return mask_work(pixels * _COSTLY if costly else pixels)

    def check_logits(self, prompts: int, model: ModelInfo) -> None:
        """Raise `ResponseTooLarge` if the logits alone would exceed the response's limit."""
        if not self.low_res_logits:
            return
        masks_per_prompt = families.of(model).masks_per_prompt(self.selection)
        nbytes = prompts * masks_per_prompt * model.mask_size**2 * 4
        if nbytes > self.max_logits_bytes:
            raise ResponseTooLarge(
                "include_low_res_logits",
                f"the logits would have {nbytes} bytes, over the limit of "
                f"{self.max_logits_bytes}; send fewer prompts, or request {_WITHOUT_LOGITS} "
                "without logits",
                metadata={
                    "limit": str(self.max_logits_bytes),
                    "value": str(nbytes),
                    "suggested_output_mode": _WITHOUT_LOGITS,
                },
            )


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One mask for a prompt; ``token_index`` is that of the decoder's mask token.

    ``mask`` is None if only logits were requested.
    """

    predicted_iou: float
    token_index: int
    mask: Mask | None = None
    low_res_logits: FloatArray | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PromptResult:
    """The masks of one prompt, and the probability of an object, None if the family has none."""

    candidates: tuple[Candidate, ...]
    object_score: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """The result of each prompt, in request order, and the embedding that was used."""

    results: tuple[PromptResult, ...]
    lease: EmbeddingLease


@dataclass(frozen=True, slots=True, eq=False)
class Predictor:
    """Predicts masks for prompts."""

    embeddings: EmbeddingService
    engine: Engine
    workers: Workers
    max_prompts_per_batch: int

    async def predict(
        self,
        source: Source,
        model: str,
        prompts: tuple[Prompt, ...],
        options: PredictOptions,
        context: RequestContext,
    ) -> Prediction:
        """Predict masks for *prompts*, each independently of the others.

        Raises `InvalidRequest` for prompts outside the image, before any model runs.
        """

        def check(image: Size, chosen: ModelInfo) -> None:
            options.check_logits(len(prompts), chosen)
            check_selection(options.selection, chosen)
            check_prompts(prompts, image, chosen)

        leasing = self.embeddings.lease(source, model, context, LeaseOptions(check))
        async with leasing as lease:
            with context.clock.stage("prepare"):
                family = families.of(lease.model)
                transform = family.transform(lease.embedding.facts.image_size, lease.model)
                boxes = [prompt.box for prompt in prompts]
                postprocessing = _Postprocessing(lease.model, family, transform, options, boxes)
                groups = await self._prompt_groups(prompts, family, transform, context)
            results: dict[int, PromptResult] = {}
            for group in groups:
                output = await self._decode(group, lease, context)
                with context.clock.stage("postprocess"):
                    of_group = await self._results(postprocessing, group, output, context)
                results.update(zip(group.indices, of_group, strict=True))
        return Prediction(tuple(results[index] for index in range(len(prompts))), lease)

    async def _results(
        self,
        postprocessing: _Postprocessing,
        group: PromptGroup,
        output: DecoderOutput,
        context: RequestContext,
    ) -> list[PromptResult]:
        work = postprocessing.work(len(group.indices))
        if work is not Work.LONG:
            results = partial(postprocessing.results, group, output)
            return await self.workers.run_as(work, context, results)
        # Mask by mask, on all cores.
        jobs = postprocessing.jobs(group, output)
        candidates = await self.workers.run_all(context, [each for row in jobs for each in row])
        remaining = iter(candidates)
        return postprocessing.collected([list(islice(remaining, len(row))) for row in jobs], output)

    async def _prompt_groups(
        self,
        prompts: tuple[Prompt, ...],
        family: Family,
        transform: ImageTransform,
        context: RequestContext,
    ) -> list[PromptGroup]:
        # One by one: large masks take long, so other calls' work is interleaved, and the rest is
        # skipped once the call has ended.
        ready = [
            await self.workers.run(context, with_logits, prompt, family, transform)
            if isinstance(prompt.mask, BinaryMask)
            else prompt
            for prompt in prompts
        ]
        points = sum(len(prompt.points) for prompt in prompts)
        quick = is_quick(items=len(prompts), numbers=points)
        return await self.workers.run_unless(
            quick and all(prompt.mask is None for prompt in prompts),
            context,
            lambda: list(
                batch_prompts(tuple(ready), family, transform, self.max_prompts_per_batch)
            ),
        )

    async def _decode(
        self, group: PromptGroup, lease: EmbeddingLease, context: RequestContext
    ) -> DecoderOutput:
        context.check_deadline()
        with context.clock.stage("decode"):
            return await self.engine.decode(lease.model.name, lease.embedding, group.batch, context)


@dataclass(frozen=True, slots=True, eq=False)
class _Postprocessing:
    """Converts the decoder's output for one image to results; ``boxes`` are those of prompts."""

    model: ModelInfo
    family: Family
    transform: ImageTransform
    options: PredictOptions
    boxes: Sequence[Box | None]

    def work(self, prompts: int) -> Work:
        """Return where to compute the results of so many prompts."""
        if self.options.mask_format is None:
            return Work.QUICK if is_quick(items=prompts) else Work.LONG
        masks_per_prompt = self.family.masks_per_prompt(self.options.selection)
        return self.options.work(prompts * masks_per_prompt * self.transform.image.pixels)

    def results(self, group: PromptGroup, output: DecoderOutput) -> list[PromptResult]:
        """Select masks of each prompt and encode them; slow for a large image."""
        return self.collected([[job() for job in row] for row in self.jobs(group, output)], output)

    def jobs(
        self, group: PromptGroup, output: DecoderOutput
    ) -> list[list[Callable[[], Candidate]]]:
        """Select masks of each prompt, and return what is left to do for each of them."""
        selection, dynamic = self.options.selection, self.model.dynamic_multimask
        choose, iou, logits = self.family.choose, output.predicted_iou, output.low_res_logits
        boxes = [self.boxes[index] for index in group.indices]
        return [
            [
                partial(
                    self._candidate, choice, float(iou[row][choice.iou_token]), logits[row], box
                )
                for choice in choose(selection, labels, iou[row], logits[row], dynamic)
            ]
            for row, (labels, box) in enumerate(zip(group.batch.point_labels, boxes, strict=True))
        ]

    def collected(
        self, candidates: Sequence[Sequence[Candidate]], output: DecoderOutput
    ) -> list[PromptResult]:
        """Return the results from the masks of each prompt."""
        scores = output.object_score_logits
        return [
            PromptResult(
                tuple(masks_of_prompt),
                None if scores is None else probability(float(scores[row])),
            )
            for row, masks_of_prompt in enumerate(candidates)
        ]

    def _candidate(
        self, choice: MaskChoice, iou: float, logits: FloatArray, box: Box | None
    ) -> Candidate:
        mask_format, limit = self.options.mask_format, self.family.max_returned_logit
        low_res = choice.logits(logits)
        return Candidate(
            predicted_iou=iou,
            token_index=choice.token_index,
            mask=None if mask_format is None else self._mask(low_res, iou, mask_format, box),
            # Always a copy: a view would keep the logits of the whole batch alive.
            low_res_logits=low_res.clip(-limit, limit) if self.options.low_res_logits else None,
        )

    def _mask(
        self, low_res: FloatArray, iou: float, mask_format: MaskFormat, box: Box | None
    ) -> Mask:
        family, upsampling = self.family, self.family.upsampling(self.transform)
        level, offset = family.mask_threshold, family.automask.stability_score_offset
        traced = masks.trace(low_res, upsampling, level=level, offset=offset)
        summary = traced.summary()
        mask: masks.TracedMask | BoolArray = traced
        area, extent = summary.area, summary.box_xyxy
        if self.options.changes:
            mask = traced.pixels()
            regions.change(mask, extent, self.options.changes, box)
            area, extent = int(np.count_nonzero(mask)), masks.mask_to_box(mask)
        return Mask(
            segmentation=mask_formats.encode(mask, mask_format, self.options.polygons),
            area=area,
            bbox=geometry.xyxy_to_xywh(extent),
            predicted_iou=iou,
            stability_score=summary.stability,
        )


def probability(logit: float) -> float:
    """Return the sigmoid of a finite logit."""
    # Of the absolute value, so that it cannot overflow.
    ratio = math.exp(-abs(logit))
    return 1 / (1 + ratio) if logit >= 0 else ratio / (1 + ratio)
