"""The service: each RPC reads its request, asks a use case and writes the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

import grpc

from samserve.automask.events import Event, Progress, Records, Summary
from samserve.automask.search import AutoMasker
from samserve.context import Priority, RequestContext
from samserve.embedder import ById, ByImage, Embedder
from samserve.errors import Violations
from samserve.predictor import PredictOptions, Predictor
from samserve.rpc import automask_decoding, decoding, encoding
from samserve.rpc.boundary import Boundary
from samserve.rpc.methods import METHODS, SERVICE
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
            image = decoding.image(request.image)
        with violations.collect():
            durable = decoding.durable(request)
        violations.check()
        embedder = self._use_cases.embedder
        if request.prefetch:
            found = await embedder.prefetch(image, request.model, context)
            embedding = encoding.found_or_pending(found)
        else:
            leasing = embedder.lease(
                ByImage(image), request.model, context, renew=True, durable=durable
            )
            async with leasing as leased:
                embedding = encoding.embedding(leased)
        return pb.EmbedResponse(embedding=embedding, timings=encoding.timings(context.clock))

    async def Predict(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> pb.PredictResponse:
        context.allowance.check_prompts(len(request.prompts))
        context.facts.prompts = len(request.prompts)
        violations = Violations()
        with violations.collect():
            source = decoding.source(request)
        with violations.collect():
            mode = decoding.output_mode(request.output_mode)
        with violations.collect():
            multimask = decoding.multimask(request.multimask)
        with violations.collect(), context.clock.stage("prepare"):
            prompts = await self._workers.run_unless(
                decoding.prompts_are_quick(request),
                context,
                partial(decoding.prompts, request, self._limits),
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
                encoding.prediction_is_quick(answer, mode),
                context,
                partial(encoding.prediction, answer, mode),
            )
        context.facts.masks = sum(map(len, answer.results))
        response.timings.extend(encoding.timings(context.clock))
        encoding.checked(response, self._limits)
        return response

    async def AutoMask(
        self, request: pb.AutoMaskRequest, call: RequestContext
    ) -> AsyncGenerator[pb.AutoMaskResponse]:
        # Everything that AutoMask does waits behind people who click.
        context = replace(call, priority=Priority.BULK)
        violations = Violations()
        with violations.collect():
            source = decoding.source(request)
        with violations.collect():
            mode = decoding.pixel_mode(request.output_mode)
        with violations.collect(), context.clock.stage("prepare"):
            options = await self._workers.run(
                context, automask_decoding.options, request, self._limits
            )
        violations.check()
        search = self._use_cases.automasker.search(source, request.model, options, context)
        async with aclosing(search) as events:
            async for event in events:
                for response in await self._encoded(event, mode, context):
                    encoding.checked(response, self._limits)
                    yield response

    async def _encoded(
        self, event: Event, mode: OutputMode, context: RequestContext
    ) -> Iterable[pb.AutoMaskResponse]:
        match event:
            case Progress():
                return (encoding.progress(event),)
            case Summary():
                context.facts.masks = event.mask_count
                context.facts.filters = tuple(
                    (each.name, each.came, each.kept) for each in event.filters
                )
                return (encoding.summary(event, context.clock),)
            case Records():
                with context.clock.stage("encode_masks"):
                    return await self._workers.run(
                        context, lambda: list(encoding.record_batches(event, mode))
                    )

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: RequestContext
    ) -> pb.DeleteEmbeddingResponse:
        source = ById(decoding.embedding_id(request.embedding_id))
        deleted = await self._use_cases.embedder.delete(source.embedding_id, context)
        return pb.DeleteEmbeddingResponse(deleted=deleted)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: RequestContext
    ) -> pb.ListModelsResponse:
        engine = self._use_cases.embedder.engine
        return encoding.model_list(
            engine.models.values(), engine.transport, self._limits, context.allowance
        )
