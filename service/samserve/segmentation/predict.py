"""The Predict use case: from prompts on one image to masks in image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from samserve.context import RequestContext
from samserve.core import geometry, mask_formats, masks
from samserve.engines.base import DecoderOutput, Engine
from samserve.errors import ResponseTooLarge
from samserve.models import families
from samserve.models.families.base import Family, ImageTransform
from samserve.scheduling.offload import is_quick
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.prompts import PromptGroup, batch_prompts, check_prompts, with_logits
from samserve.segmentation.sources import LeaseOptions, Source
from samserve.types import (
    BinaryMask,
    FloatArray,
    Mask,
    MaskFormat,
    ModelInfo,
    Multimask,
    Prompt,
    Size,
)


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What to return for each prompt; without a mask format, nothing is upsampled."""

    multimask: Multimask = Multimask.AUTO
    mask_format: MaskFormat | None = MaskFormat.COCO_RLE
    low_res_logits: bool = False
    max_logits_bytes: int = 64 << 20

    def check_logits(self, prompts: int, model: ModelInfo) -> None:
        """Raise `ResponseTooLarge` if the logits alone would exceed the response's limit."""
        if not self.low_res_logits:
            return
        masks_per_prompt = families.of(model).masks_per_prompt(self.multimask)
        nbytes = prompts * masks_per_prompt * model.mask_size**2 * 4
        if nbytes > self.max_logits_bytes:
            raise ResponseTooLarge(
                "include_low_res_logits",
                f"the logits would have {nbytes} bytes, over the limit of "
                f"{self.max_logits_bytes}; send fewer prompts or request no logits",
                metadata={"limit": str(self.max_logits_bytes), "value": str(nbytes)},
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
class Prediction:
    """Candidates of each prompt, in request order, and the embedding that was used."""

    results: tuple[tuple[Candidate, ...], ...]
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
            check_prompts(prompts, image, chosen)

        leasing = self.embeddings.lease(source, model, context, LeaseOptions(check))
        async with leasing as lease:
            with context.clock.stage("prepare"):
                family = families.of(lease.model)
                transform = family.transform(lease.embedding.facts.image_size, lease.model)
                postprocessing = _Postprocessing(lease.model, family, transform, options)
                groups = await self._prompt_groups(prompts, family, transform, context)
            results: dict[int, tuple[Candidate, ...]] = {}
            for group in groups:
                output = await self._decode(group, lease, context)
                quick = options.mask_format is None and is_quick(items=len(group.indices))
                with context.clock.stage("postprocess"):
                    candidates = await self.workers.run_unless(
                        quick, context, partial(postprocessing.candidates, group, output)
                    )
                results.update(zip(group.indices, candidates, strict=True))
        return Prediction(tuple(results[index] for index in range(len(prompts))), lease)

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
    """Converts logits of one image to candidates."""

    model: ModelInfo
    family: Family
    transform: ImageTransform
    options: PredictOptions

    def candidates(self, group: PromptGroup, output: DecoderOutput) -> list[tuple[Candidate, ...]]:
        """Select masks of each prompt and encode them; slow for a large image."""
        select_tokens = self.family.select_tokens
        return [
            tuple(
                self._candidate(logits[token], float(iou[token]), token)
                for token in select_tokens(self.options.multimask, labels, iou, logits, self.model)
            )
            for labels, logits, iou in zip(
                group.batch.point_labels, output.low_res_logits, output.predicted_iou, strict=True
            )
        ]

    def _candidate(self, low_res: FloatArray, iou: float, token: int) -> Candidate:
        mask_format = self.options.mask_format
        return Candidate(
            predicted_iou=iou,
            token_index=token,
            mask=None if mask_format is None else self._mask(low_res, iou, mask_format),
            # A copy: a view would keep the logits of the whole batch alive.
            low_res_logits=low_res.copy() if self.options.low_res_logits else None,
        )

    def _mask(self, low_res: FloatArray, iou: float, mask_format: MaskFormat) -> Mask:
        family, upsampling = self.family, self.family.upsampling(self.transform)
        level, offset = family.mask_threshold, family.automask.stability_score_offset
        summary = masks.summarize(low_res, upsampling, level=level, offset=offset)
        pixels = masks.binary_mask(low_res, upsampling, level=level)
        return Mask(
            segmentation=mask_formats.encode(pixels, mask_format),
            area=summary.area,
            bbox=geometry.xyxy_to_xywh(summary.box_xyxy),
            predicted_iou=iou,
            stability_score=summary.stability,
        )
