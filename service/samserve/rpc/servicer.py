"""The service: each RPC reads its request, calls a use case and builds the response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass

import grpc

from samserve.context import RequestContext
from samserve.engines.base import Engine
from samserve.rpc import requests
from samserve.rpc.handler import CallHandler
from samserve.rpc.methods import SERVICE, served_methods
from samserve.rpc.model_responses import ModelLists
from samserve.rpc.requests import RequestReader
from samserve.rpc.responses import ResponseWriter
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask.generator import AutoMasker
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.embedding_files import EmbeddingFiles
from samserve.segmentation.predict import Predictor
from samserve.segmentation.promotion import Promoter
from samserve.segmentation.sources import ImageSource, LeaseOptions
from samserve.settings import LimitSettings
from samserve.v1 import samserve_pb2 as pb


@dataclass(frozen=True, slots=True, eq=False)
class UseCases:
    """The use cases of the service, independent of gRPC."""

    embeddings: EmbeddingService
    files: EmbeddingFiles
    predictor: Predictor
    automasker: AutoMasker
    promoter: Promoter


class SegmentationServicer:
    """Serves `samserve.v1.SegmentationService`; methods have the names of the protocol."""

    def __init__(
        self,
        use_cases: UseCases,
        engine: Engine,
        workers: Workers,
        limits: LimitSettings,
        decoders: Mapping[str, str],
    ) -> None:
        """Serve the *use_cases*; *decoders* see `ModelLists`."""
        self._embeddings = use_cases.embeddings
        self._files = use_cases.files
        self._predictor = use_cases.predictor
        self._automasker = use_cases.automasker
        self._promoter = use_cases.promoter
        self._engine = engine
        self._model_lists = ModelLists(limits, decoders)
        self._reader = RequestReader(limits, workers)
        self._writer = ResponseWriter(limits, workers)

    def handlers(self, handler: CallHandler) -> grpc.GenericRpcHandler:
        """Return the gRPC handlers of every method of the protocol."""
        by_name = {
            method.name: handler.handler(method, request, getattr(self, method.name))
            for method, request in served_methods().items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, by_name)

    async def Embed(self, request: pb.EmbedRequest, context: RequestContext) -> pb.EmbedResponse:
        call = requests.embed(request)
        if call.prefetch:
            found = await self._embeddings.prefetch(call.image, call.model, context)
            return self._writer.embed(found, context)
        options = LeaseOptions(renew=True, durable=call.durable)
        source = ImageSource(call.image)
        async with self._embeddings.lease(source, call.model, context, options) as leased:
            return self._writer.embed(leased, context)

    async def Predict(
        self, request: pb.PredictRequest, context: RequestContext
    ) -> pb.PredictResponse:
        call = await self._reader.predict(request, context)
        result = await self._predictor.predict(
            call.source, call.model, call.prompts, call.options, context
        )
        return await self._writer.predict(result, context)

    async def AutoMask(
        self, request: pb.AutoMaskRequest, context: RequestContext
    ) -> AsyncGenerator[pb.AutoMaskResponse]:
        call = await self._reader.automask(request, context)
        generator = self._automasker.generate(
            call.source, call.model, call.options, context, call.mask_format, call.polygons
        )
        async with aclosing(generator) as events:
            async for event in events:
                for response in await self._writer.automask(event, context):
                    yield response

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: RequestContext
    ) -> pb.DeleteEmbeddingResponse:
        embedding_id = requests.delete(request)
        deleted = await self._embeddings.delete(embedding_id, context)
        return pb.DeleteEmbeddingResponse(deleted=deleted)

    async def GetEmbedding(
        self, request: pb.GetEmbeddingRequest, context: RequestContext
    ) -> AsyncGenerator[pb.GetEmbeddingResponse]:
        self._files.check_enabled("GetEmbedding")
        embedding_id = requests.get(request)
        async with aclosing(self._files.get(embedding_id, context)) as chunks:
            async for chunk in chunks:
                yield pb.GetEmbeddingResponse(chunk=chunk)

    async def PutEmbedding(
        self, messages: AsyncIterator[pb.PutEmbeddingRequest], context: RequestContext
    ) -> pb.PutEmbeddingResponse:
        self._files.check_enabled("PutEmbedding")
        async with aclosing(message.chunk async for message in messages) as chunks:
            return self._writer.put(await self._files.put(chunks, context))

    async def PromoteModel(
        self, request: pb.PromoteModelRequest, context: RequestContext
    ) -> pb.PromoteModelResponse:
        step, version = requests.promotion(request)
        in_service = await self._promoter.run(step, version)
        context.facts.of_model(in_service)
        return pb.PromoteModelResponse(digest=in_service.digest)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: RequestContext
    ) -> pb.ListModelsResponse:
        models, transport = self._engine.models.values(), self._engine.transport
        return self._model_lists.of(models, transport, context.allowance)
