"""The use case Predict: prompts on one picture to masks in image pixels."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from samserve.context import RequestContext
from samserve.core import masks, rle, tokens
from samserve.engines.base import DecoderOutput
from samserve.errors import ResponseTooLarge
from samserve.segmentation.embed import Embedder, Leased, Source
from samserve.segmentation.prompts import (
    Frames,
    PromptGroup,
    check_prompts,
    group,
    sparse_count,
    with_logits,
)
from samserve.types import (
    BinaryMask,
    Candidate,
    FloatArray,
    Mask,
    ModelInfo,
    Multimask,
    Prompt,
    Size,
)

# The threshold and the shift of the reference implementation.
MASK_THRESHOLD = 0.0
STABILITY_OFFSET = 1.0
_FEW = 4


@dataclass(frozen=True, slots=True)
class PredictOptions:
    """What is asked besides the prompts; without *pixels*, nothing is upsampled."""

    multimask: Multimask = Multimask.AUTO
    pixels: bool = True
    low_res_logits: bool = False
    most_logits_bytes: int = 64 << 20

    def check_logits(self, prompts: int, model: ModelInfo) -> None:
        """Raise `ResponseTooLarge` if the logits alone would not fit into the answer."""
        if not self.low_res_logits:
            return
        masks_per_prompt = 3 if self.multimask is Multimask.ALL else 1
        nbytes = prompts * masks_per_prompt * model.mask_size**2 * 4
        if nbytes > self.most_logits_bytes:
            raise ResponseTooLarge(
                "include_low_res_logits",
                f"the logits would have {nbytes} bytes, over the limit of "
                f"{self.most_logits_bytes}; ask for fewer prompts or for no logits",
                metadata={"limit": str(self.most_logits_bytes), "value": str(nbytes)},
            )


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """Candidates of each prompt, in request order, and the embedding that was used."""

    results: tuple[tuple[Candidate, ...], ...]
    leased: Leased


class Predictor:
    """Answers prompts with masks."""

    def __init__(self, embedder: Embedder, prompts_per_run: int) -> None:
        self._embedder = embedder
        self._prompts_per_run = prompts_per_run

    async def predict(
        self,
        source: Source,
        model: str,
        prompts: tuple[Prompt, ...],
        options: PredictOptions,
        context: RequestContext,
    ) -> Prediction:
        """Predict masks for *prompts*, each as if it were alone.

        Raises `InvalidRequest` for prompts outside the image, before any model runs.
        """

        def check(image: Size, chosen: ModelInfo) -> None:
            options.check_logits(len(prompts), chosen)
            check_prompts(prompts, image, chosen)

        async with self._embedder.lease(source, model, context, check=check) as leased:
            results: list[tuple[Candidate, ...]] = [()] * len(prompts)
            with context.clock.stage("prepare"):
                frames = Frames.of(leased.embedding.facts.image_size, leased.model)
                upsampling = frames.upsampling()
                groups = await self._groups(prompts, frames, context)
            for members in groups:
                output = await self._decode(members, leased, context)
                answer = partial(_candidates, prompts, members, output, upsampling, options)
                with context.clock.stage("postprocess"):
                    answered = await self._embedder.workers.run_unless(
                        not options.pixels, context, answer
                    )
                for index, candidates in zip(members.indices, answered, strict=True):
                    results[index] = candidates
        return Prediction(tuple(results), leased)

    async def _groups(
        self, prompts: tuple[Prompt, ...], frames: Frames, context: RequestContext
    ) -> list[PromptGroup]:
        workers = self._embedder.workers
        # One by one: large masks take long, others get their turn between them, and a call that
        # has ended leaves the rest undone.
        ready = [
            await workers.run_unless(
                not isinstance(prompt.mask, BinaryMask),
                context,
                partial(with_logits, prompt, frames),
            )
            for prompt in prompts
        ]
        return await workers.run_unless(
            _is_quick(prompts),
            context,
            lambda: list(group(tuple(ready), frames, self._prompts_per_run)),
        )

    async def _decode(
        self, members: PromptGroup, leased: Leased, context: RequestContext
    ) -> DecoderOutput:
        context.check_deadline()
        with context.clock.stage("decode"):
            return await self._embedder.engine.decode(
                leased.model.name, leased.embedding, members.batch, context
            )


def _is_quick(prompts: tuple[Prompt, ...]) -> bool:
    """Tell whether tensors are made of the prompts in a fraction of a millisecond."""
    return len(prompts) <= _FEW and all(prompt.mask is None for prompt in prompts)


def _candidates(
    prompts: tuple[Prompt, ...],
    members: PromptGroup,
    output: DecoderOutput,
    upsampling: masks.Upsampling,
    options: PredictOptions,
) -> list[tuple[Candidate, ...]]:
    return [
        tuple(
            _candidate(logits[token], float(iou[token]), token, upsampling, options)
            for token in tokens.answered_tokens(
                options.multimask, sparse_count(prompts[index]), iou
            )
        )
        for index, logits, iou in zip(
            members.indices, output.low_res_logits, output.predicted_iou, strict=True
        )
    ]


def _candidate(
    low_res: FloatArray,
    iou: float,
    token: int,
    upsampling: masks.Upsampling,
    options: PredictOptions,
) -> Candidate:
    return Candidate(
        predicted_iou=iou,
        token_index=token,
        mask=_mask(low_res, iou, upsampling) if options.pixels else None,
        # A copy: a view would keep the logits of the whole batch alive.
        low_res_logits=low_res.copy() if options.low_res_logits else None,
    )


def _mask(low_res: FloatArray, iou: float, upsampling: masks.Upsampling) -> Mask:
    summary = masks.summarize(low_res, upsampling, level=MASK_THRESHOLD, offset=STABILITY_OFFSET)
    x_min, y_min, x_max, y_max = summary.box_xyxy
    return Mask(
        rle=rle.encode(masks.binary_mask(low_res, upsampling, level=MASK_THRESHOLD)),
        area=summary.area,
        bbox=(float(x_min), float(y_min), float(x_max - x_min), float(y_max - y_min)),
        predicted_iou=iou,
        stability_score=0.0 if np.isnan(summary.stability) else summary.stability,
    )
