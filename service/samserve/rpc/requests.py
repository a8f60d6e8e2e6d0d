"""Requests to what the use cases take; with the modules for its parts, the only validator.

What needs the image's size is checked by the use cases, as soon as the size is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from samserve.context import RequestContext
from samserve.errors import InvalidRequest, Violations
from samserve.rpc import automask_requests, prompt_requests
from samserve.rpc.mask_formats import FORMATS
from samserve.rpc.request_fields import choice, choices, embedding_id, image, source
from samserve.scheduling.offload import is_quick
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.predict import PredictOptions
from samserve.segmentation.sources import Source
from samserve.settings import LimitSettings
from samserve.types import Image, MaskFormat, Multimask, Prompt
from samserve.v1 import samserve_pb2 as pb

_DURABILITIES = {pb.DURABILITY_UNSPECIFIED: False, pb.DURABILITY_DURABLE: True}
_MULTIMASKS = choices(pb.Multimask, "MULTIMASK", Multimask, Multimask.AUTO)
# None: logits alone, without pixels.
_OUTPUT_MODES: dict[int, MaskFormat | None] = {**FORMATS, pb.OUTPUT_MODE_LOW_RES_LOGITS: None}


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """An Embed; *durable*: the embedding must survive the loss of a machine."""

    image: Image
    model: str
    durable: bool
    prefetch: bool


@dataclass(frozen=True, slots=True)
class PredictCall:
    """A Predict."""

    source: Source
    model: str
    prompts: tuple[Prompt, ...]
    options: PredictOptions


@dataclass(frozen=True, slots=True)
class AutoMaskCall:
    """An AutoMask; *options* are those that the request sets, by their names."""

    source: Source
    model: str
    options: Mapping[str, Any]
    mask_format: MaskFormat


class RequestReader:
    """Reads requests, large ones in a thread.  Raises `InvalidRequest` with all violations."""

    def __init__(self, limits: LimitSettings, workers: Workers) -> None:
        self._limits = limits
        self._workers = workers

    async def predict(self, request: pb.PredictRequest, context: RequestContext) -> PredictCall:
        """Read a Predict.  Raises `QuotaExceeded` for more prompts than the tenant may send."""
        context.allowance.check_prompts(len(request.prompts))
        context.facts.prompts = len(request.prompts)
        with context.clock.stage("prepare"):
            return await self._workers.run_unless(
                prompts_are_quick(request), context, partial(predict, request, self._limits)
            )

    async def automask(self, request: pb.AutoMaskRequest, context: RequestContext) -> AutoMaskCall:
        """Read an AutoMask."""
        with context.clock.stage("prepare"):
            return await self._workers.run(context, automask, request, self._limits)


def embed(request: pb.EmbedRequest) -> EmbedCall:
    """Read an Embed."""
    violations = Violations()
    with violations.collect():
        sent = image(request.image)
    with violations.collect():
        durable = choice("durability", request.durability, _DURABILITIES, pb.Durability)
        if durable and request.prefetch:
            text = "leave it out of a prefetch, which waits for nothing"
            raise InvalidRequest("durability", text)
    violations.check()
    return EmbedCall(sent, request.model, durable, request.prefetch)


def predict(request: pb.PredictRequest, limits: LimitSettings) -> PredictCall:
    """Read a Predict."""
    violations = Violations()
    with violations.collect():
        segmented = source(request)
    with violations.collect():
        mode = request.output_mode
        mask_format = choice("output_mode", mode, _OUTPUT_MODES, pb.OutputMode)
    with violations.collect():
        multimask = choice("multimask", request.multimask, _MULTIMASKS, pb.Multimask)
    with violations.collect():
        prompts = prompt_requests.prompts(request, limits)
    violations.check()
    logits = request.include_low_res_logits or mask_format is None
    options = PredictOptions(multimask, mask_format, logits, limits.response_bytes)
    return PredictCall(segmented, request.model, prompts, options)


def automask(request: pb.AutoMaskRequest, limits: LimitSettings) -> AutoMaskCall:
    """Read an AutoMask."""
    violations = Violations()
    with violations.collect():
        segmented = source(request)
    with violations.collect():
        mask_format = choice("output_mode", request.output_mode, FORMATS, pb.OutputMode)
    with violations.collect():
        options = automask_requests.options(request, limits)
    violations.check()
    return AutoMaskCall(segmented, request.model, options, mask_format)


def delete(request: pb.DeleteEmbeddingRequest) -> str:
    """Read which embedding to delete."""
    return embedding_id(request.embedding_id)


def prompts_are_quick(request: pb.PredictRequest) -> bool:
    """Return whether `predict` takes so little that no thread is worth it."""
    prompts = request.prompts
    # The number first: a request may hold millions of prompts, and this runs on the event loop.
    return (
        is_quick(items=len(prompts))
        and is_quick(numbers=sum(len(prompt.points) for prompt in prompts))
        and not any(prompt.HasField("mask") for prompt in prompts)
    )
