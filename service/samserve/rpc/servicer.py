"""The service: each RPC reads its request, asks a use case and writes the answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from samserve.automask.events import Event, Progress, Records, Summary
from samserve.automask.search import AutoMasker
from samserve.context import Priority, RequestContext
from samserve.embedder import ById, ByImage, Embedder
from samserve.predictor import PredictOptions, Predictor
from samserve.rpc import automask_decoding, decoding, encoding
from samserve.rpc.boundary import Boundary, Rpc
from samserve.settings import LimitSettings
from samserve.types import OutputMode
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc


@dataclass(frozen=True, slots=True, eq=False)
class UseCases:
    """What the service can do, independent of gRPC."""

    embedder: Embedder
    predictor: Predictor
    automasker: AutoMasker


class SegmentationServicer(samserve_pb2_grpc.SegmentationServiceServicer):
    """Serves `samserve.v1.SegmentationService`."""

    def __init__(self, use_cases: UseCases, boundary: Boundary, limits: LimitSettings) -> None:
        self._use_cases = use_cases
        self._boundary = boundary
        self._limits = limits
        self._workers = use_cases.embedder.workers

    async def Embed(self, request: pb.EmbedRequest, rpc: Rpc) -> pb.EmbedResponse:
        async with self._boundary.call("Embed", request, rpc) as context:
            source = ByImage(decoding.image(request.image))
            leasing = self._use_cases.embedder.lease(source, request.model, context, renew=True)
            async with leasing as leased:
                embedding = encoding.embedding(leased)
            return pb.EmbedResponse(embedding=embedding, timings=encoding.timings(context.clock))

    async def Predict(self, request: pb.PredictRequest, rpc: Rpc) -> pb.PredictResponse:
        async with self._boundary.call("Predict", request, rpc) as context:
            source = decoding.source(request)
            mode = decoding.output_mode(request.output_mode)
            pixels = mode is not OutputMode.LOW_RES_LOGITS
            options = PredictOptions(
                decoding.multimask(request.multimask),
                pixels,
                request.include_low_res_logits or not pixels,
                self._limits.response_bytes,
            )
            prompts = await self._workers.run_unless(
                decoding.prompts_are_quick(request),
                context.priority,
                partial(decoding.prompts, request, self._limits),
            )
            answer = await self._use_cases.predictor.predict(
                source, request.model, prompts, options, context
            )
            with context.clock.stage("encode_masks"):
                response = await self._workers.run_unless(
                    encoding.prediction_is_quick(answer, mode),
                    context.priority,
                    partial(encoding.prediction, answer, mode),
                )
            response.timings.extend(encoding.timings(context.clock))
            encoding.checked(response, self._limits)
            return response

    async def AutoMask(
        self, request: pb.AutoMaskRequest, rpc: Rpc
    ) -> AsyncIterator[pb.AutoMaskResponse]:
        async with self._boundary.call("AutoMask", request, rpc) as call:
            # Everything that AutoMask does waits behind people who click.
            context = replace(call, priority=Priority.BULK)
            source = decoding.source(request)
            mode = decoding.pixel_mode(request.output_mode)
            options = await self._workers.run(
                context.priority, automask_decoding.options, request, source, self._limits
            )
            search = self._use_cases.automasker.search(source, request.model, options, context)
            # Closed at once when the client leaves, and not when it is garbage collected.
            async with aclosing(self._automask_responses(search, mode, context)) as responses:
                async for response in responses:
                    yield response

    async def _automask_responses(
        self, search: AsyncGenerator[Event], mode: OutputMode, context: RequestContext
    ) -> AsyncGenerator[pb.AutoMaskResponse]:
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
                return (encoding.summary(event, context.clock),)
            case Records():
                return await self._workers.run(
                    context.priority, lambda: list(encoding.record_batches(event, mode))
                )

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, rpc: Rpc
    ) -> pb.DeleteEmbeddingResponse:
        async with self._boundary.call("DeleteEmbedding", request, rpc) as context:
            source = ById(decoding.embedding_id(request.embedding_id))
            deleted = await self._use_cases.embedder.delete(source.embedding_id, context)
            return pb.DeleteEmbeddingResponse(deleted=deleted)

    async def ListModels(self, request: pb.ListModelsRequest, rpc: Rpc) -> pb.ListModelsResponse:
        async with self._boundary.call("ListModels", request, rpc):
            engine = self._use_cases.embedder.engine
            return encoding.model_list(engine.models.values(), engine.transport, self._limits)
