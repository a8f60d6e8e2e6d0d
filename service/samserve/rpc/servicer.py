"""The service: each RPC reads its request, asks a use case and writes the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import grpc

from samserve.context import Priority, RequestContext
from samserve.errors import Violations
from samserve.rpc import automask_requests, requests, responses
from samserve.rpc.handler import Boundary
from samserve.rpc.methods import METHODS, SERVICE
from samserve.segmentation.automask.events import Event, Progress, Records, Summary
from samserve.segmentation.automask.generator import AutoMasker
from samserve.segmentation.embed import ById, ByImage, Embedder
from samserve.segmentation.predict import PredictOptions, Predictor
from samserve.settings import LimitSettings
from samserve.types import OutputMode
from samserve.v1 import samserve_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class UseCases:
    """What the service can do, independent of gRPC."""

    embedder: Embedder
    predictor: Predictor
    automasker: AutoMasker


class SegmentationServicer:
    """Serves `samserve.v1.SegmentationService`; methods have the names that the protocol has."""

    def __init__(self, use_cases: UseCases, limits: LimitSettings) -> None:
        self._use_cases = use_cases
        self._limits = limits
        self._workers = use_cases.embedder.workers

    def handlers(self, boundary: Boundary) -> grpc.GenericRpcHandler:
        """Put every method of the protocol behind the boundary."""
        by_name = {
            method.name: boundary.handler(method, getattr(self, method.name)) for method in METHODS
        }
        return grpc.method_handlers_generic_handler(SERVICE, by_name)

    async def Embed(self, request: pb.EmbedRequest, context: RequestContext) -> pb.EmbedResponse:
        violations = Violations()
        with violations.collect():
            image = requests.image(request.image)
        with violations.collect():
            durable = requests.durable(request)
        violations.check()
        embedder = self._use_cases.embedder
        if request.prefetch:
            found = await embedder.prefetch(image, request.model, context)
            embedding = responses.found_or_pending(found)
        else:
            leasing = embedder.lease(
                ByImage(image), request.model, context, renew=True, durable=durable
            )
            async with leasing as leased:
                embedding = responses.embedding(leased)
        return pb.EmbedResponse(embedding=embedding, timings=responses.timings(context.clock))

    async def Predict(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> pb.PredictResponse:
        context.allowance.check_prompts(len(request.prompts))
        context.facts.prompts = len(request.prompts)
        violations = Violations()
        with violations.collect():
            source = requests.source(request)
        with violations.collect():
            mode = requests.output_mode(request.output_mode)
        with violations.collect():
            multimask = requests.multimask(request.multimask)
        with violations.collect(), context.clock.stage("prepare"):
            prompts = await self._workers.run_unless(
                requests.prompts_are_quick(request),
                context,
                partial(requests.prompts, request, self._limits),
            )
        violations.check()
        pixels = mode is not OutputMode.LOW_RES_LOGITS
        options = PredictOptions(
            multimask,
            pixels,
            request.include_low_res_logits or not pixels,
            self._limits.response_bytes,
        )
        answer = await self._use_cases.predictor.predict(
            source, request.model, prompts, options, context
        )
        with context.clock.stage("encode_masks"):
            response = await self._workers.run_unless(
                responses.prediction_is_quick(answer, mode),
                context,
                partial(responses.prediction, answer, mode),
            )
        context.facts.masks = sum(map(len, answer.results))
        response.timings.extend(responses.timings(context.clock))
        responses.checked(response, self._limits)
        return response

    async def AutoMask(
        self, request: pb.AutoMaskRequest, call: RequestContext
    ) -> AsyncGenerator[pb.AutoMaskResponse]:
        # Everything that AutoMask does waits behind people who click.
        context = replace(call, priority=Priority.BULK)
        violations = Violations()
        with violations.collect():
            source = requests.source(request)
        with violations.collect():
            mode = requests.pixel_mode(request.output_mode)
        with violations.collect(), context.clock.stage("prepare"):
            options = await self._workers.run(
                context, automask_requests.options, request, self._limits
            )
        violations.check()
        search = self._use_cases.automasker.search(source, request.model, options, context)
        async with aclosing(search) as events:
            async for event in events:
                for response in await self._encoded(event, mode, context):
                    responses.checked(response, self._limits)
                    yield response

    async def _encoded(
        self, event: Event, mode: OutputMode, context: RequestContext
    ) -> Iterable[pb.AutoMaskResponse]:
        match event:
            case Progress():
                return (responses.progress(event),)
            case Summary():
                context.facts.masks = event.mask_count
                context.facts.filters = tuple(
                    (each.name, each.came, each.kept) for each in event.filters
                )
                return (responses.summary(event, context.clock),)
            case Records():
                with context.clock.stage("encode_masks"):
                    return await self._workers.run(
                        context, lambda: list(responses.record_batches(event, mode))
                    )

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: RequestContext
    ) -> pb.DeleteEmbeddingResponse:
        source = ById(requests.embedding_id(request.embedding_id))
        deleted = await self._use_cases.embedder.delete(source.embedding_id, context)
        return pb.DeleteEmbeddingResponse(deleted=deleted)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: RequestContext
    ) -> pb.ListModelsResponse:
        engine = self._use_cases.embedder.engine
        return responses.model_list(
            engine.models.values(), engine.transport, self._limits, context.allowance
        )
