"""Validation of requests, and their conversion to the arguments of the use cases.

Together with the modules for parts of requests, this is the only validation.  Only checks that need
the size of the image are in the use cases, where the size is known.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from samserve.context import RequestContext
from samserve.errors import InvalidRequest, Violations
from samserve.rpc import automask_requests, mask_options, prompt_requests
from samserve.rpc.mask_formats import FORMATS
from samserve.rpc.request_fields import HQ_MODES, choice, choices, embedding_id, image, source
from samserve.scheduling.offload import is_quick
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.predict import PredictOptions
from samserve.segmentation.promotion import Step
from samserve.segmentation.sources import Source
from samserve.settings import LimitSettings
from samserve.types import (
    Image,
    MaskFormat,
    MaskSelection,
    ModelVersion,
    Multimask,
    PolygonOptions,
    Prompt,
)
from samserve.v1 import samserve_pb2 as pb

_DURABILITIES = {pb.DURABILITY_UNSPECIFIED: False, pb.DURABILITY_DURABLE: True}
_MULTIMASKS = choices(pb.Multimask, "MULTIMASK", Multimask, Multimask.AUTO)
# None: logits alone, without pixels.
_STEPS: dict[int, Step] = {
    pb.PromotionStep.Value(f"PROMOTION_STEP_{step.name}"): step for step in Step
}
# A model has two graphs, some families have more.
_MAX_CONFIGS = 16
_OUTPUT_MODES: dict[int, MaskFormat | None] = {**FORMATS, pb.OUTPUT_MODE_LOW_RES_LOGITS: None}


@dataclass(frozen=True, slots=True)
class EmbedCall:
    """An Embed call; a *durable* embedding must survive the loss of a machine."""

    image: Image
    model: str
    durable: bool
    prefetch: bool


@dataclass(frozen=True, slots=True)
class PredictCall:
    """A Predict call."""

    source: Source
    model: str
    prompts: tuple[Prompt, ...]
    options: PredictOptions


@dataclass(frozen=True, slots=True)
class AutoMaskCall:
    """An AutoMask call; *options* are those that the request sets, by their names."""

    source: Source
    model: str
    options: Mapping[str, Any]
    mask_format: MaskFormat
    polygons: PolygonOptions


class RequestReader:
    """Reads requests, large ones in a thread.  Raises `InvalidRequest` with all violations."""

    def __init__(self, limits: LimitSettings, workers: Workers) -> None:
        self._limits = limits
        self._workers = workers

    async def predict(self, request: pb.PredictRequest, context: RequestContext) -> PredictCall:
        """Read a Predict request.  Raises `QuotaExceeded` for prompts over the tenant's quota."""
        context.allowance.check_prompts(len(request.prompts))
        context.facts.prompts = len(request.prompts)
        with context.clock.stage("prepare"):
            return await self._workers.run_unless(
                prompts_are_quick(request), context, partial(predict, request, self._limits)
            )

    async def automask(self, request: pb.AutoMaskRequest, context: RequestContext) -> AutoMaskCall:
        """Read an AutoMask request."""
        with context.clock.stage("prepare"):
            return await self._workers.run(context, automask, request, self._limits)


def embed(request: pb.EmbedRequest) -> EmbedCall:
    """Read an Embed request."""
    violations = Violations()
    with violations.collect():
        sent = image(request.image)
    with violations.collect():
        durable = choice("durability", request.durability, _DURABILITIES, pb.Durability)
        if durable and request.prefetch:
            text = "must not be set with prefetch, which returns before anything is stored"
            raise InvalidRequest("durability", text)
    violations.check()
    return EmbedCall(sent, request.model, durable, request.prefetch)


def predict(request: pb.PredictRequest, limits: LimitSettings) -> PredictCall:
    """Read a Predict request."""
    violations = Violations()
    with violations.collect():
        segmented = source(request)
    with violations.collect():
        mode = request.output_mode
        mask_format = choice("output_mode", mode, _OUTPUT_MODES, pb.OutputMode)
        with violations.collect():
            polygons = mask_options.polygon_options(request, mask_format)
        with violations.collect():
            changes = mask_options.mask_changes(request, mask_format, limits.max_prompts)
    with violations.collect():
        multimask = choice("multimask", request.multimask, _MULTIMASKS, pb.Multimask)
    with violations.collect():
        hq_mode = choice("hq_mode", request.hq_mode, HQ_MODES, pb.HqMode)
    with violations.collect():
        prompts = prompt_requests.prompts(request, limits)
    violations.check()
    logits = request.include_low_res_logits or mask_format is None
    selection = MaskSelection(multimask, hq_mode)
    options = PredictOptions(
        selection, mask_format, logits, limits.max_response_bytes, polygons, changes
    )
    return PredictCall(segmented, request.model, prompts, options)


def automask(request: pb.AutoMaskRequest, limits: LimitSettings) -> AutoMaskCall:
    """Read an AutoMask request."""
    violations = Violations()
    with violations.collect():
        segmented = source(request)
    with violations.collect():
        mask_format = choice("output_mode", request.output_mode, FORMATS, pb.OutputMode)
        with violations.collect():
            polygons = mask_options.polygon_options(request, mask_format)
    with violations.collect():
        options = automask_requests.options(request, limits)
    violations.check()
    return AutoMaskCall(segmented, request.model, options, mask_format, polygons)


def promotion(request: pb.PromoteModelRequest) -> tuple[Step, ModelVersion]:
    """Read a PromoteModel request.  Raises `InvalidRequest`."""
    step = _STEPS.get(request.step)
    if step is None:
        raise InvalidRequest("step", "is required")
    for field in ("model", "digest"):
        if not getattr(request, field):
            raise InvalidRequest(field, "is required")
    if len(request.configs) > _MAX_CONFIGS:
        raise InvalidRequest("configs", f"must have at most {_MAX_CONFIGS} elements")
    for field in ("new_bytes", "served_bytes"):
        if getattr(request, field) < 0:
            raise InvalidRequest(field, "must be at least 0")
    return step, ModelVersion(
        model=request.model,
        number=request.version,
        digest=request.digest,
        configs=tuple(request.configs),
        new_bytes=request.new_bytes,
        served_bytes=request.served_bytes,
    )


def delete(request: pb.DeleteEmbeddingRequest) -> str:
    """Read a DeleteEmbedding request: the id of the embedding."""
    return embedding_id(request.embedding_id)


def get(request: pb.GetEmbeddingRequest) -> str:
    """Read a GetEmbedding request: the id of the embedding."""
    return embedding_id(request.embedding_id)


def prompts_are_quick(request: pb.PredictRequest) -> bool:
    """Return whether `predict` is too fast to be worth a thread."""
    prompts = request.prompts
    # The number first: a request may hold millions of prompts, and this runs on the event loop.
    return (
        is_quick(items=len(prompts))
        and is_quick(numbers=sum(len(prompt.points) for prompt in prompts))
        and not any(prompt.HasField("mask") for prompt in prompts)
    )
