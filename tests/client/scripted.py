"""A gRPC server that does what a test has written down, for what the real one never does."""

# ruff: noqa: N802 - names of methods are those of the protocol

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class Scripted(samserve_pb2_grpc.SegmentationServiceServicer):
    """Fails the first *failures* calls with *code*; AutoMask after *events_before* messages."""

    def __init__(self, *, failures: int, code: grpc.StatusCode, events_before: int = 0) -> None:
        self._failures = failures
        self._code = code
        self._events_before = events_before
        self.requests: list[Any] = []

    async def _fail(self, request: Any, context: Context) -> None:
        self.requests.append(request)
        if len(self.requests) <= self._failures:
            await context.abort(self._code, "as written")

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        await self._fail(request, context)
        return pb.EmbedResponse(embedding=pb.Embedding(id="id"))

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        await self._fail(request, context)
        return pb.PredictResponse()

    async def DeleteEmbedding(
        self, request: pb.DeleteEmbeddingRequest, context: Context
    ) -> pb.DeleteEmbeddingResponse:
        await self._fail(request, context)
        return pb.DeleteEmbeddingResponse(deleted=True)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        await self._fail(request, context)
        return pb.ListModelsResponse()

    async def AutoMask(
        self, request: pb.AutoMaskRequest, context: Context
    ) -> AsyncIterator[pb.AutoMaskResponse]:
        for done in range(self._events_before):
            progress = pb.AutoMaskProgress(evaluated_point_count=done, total_point_count=9)
            yield pb.AutoMaskResponse(progress=progress)
        await self._fail(request, context)
        yield pb.AutoMaskResponse(summary=pb.AutoMaskSummary(mask_count=0))


@asynccontextmanager
async def serving(
    servicer: samserve_pb2_grpc.SegmentationServiceServicer,
) -> AsyncIterator[str]:
    """Serve a script on a free port; yields the address."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    samserve_pb2_grpc.add_SegmentationServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@dataclass(frozen=True)
class Noted:
    """A call as it came: when it had to be answered is in seconds from when it arrived."""

    request: Any
    metadata: dict[str, Any]
    left_s: float


class Refusing(samserve_pb2_grpc.SegmentationServiceServicer):
    """Refuses the first calls with the reasons that it was given, then answers; notes all calls."""

    def __init__(self, *reasons: str, before: Callable[[], object] = lambda: None) -> None:
        self._reasons = list(reasons)
        self._before = before
        self.calls: list[Noted] = []

    async def _take(self, request: Any, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.calls.append(Noted(request, metadata, context.time_remaining() or 0.0))
        self._before()
        if self._reasons:
            await context.abort_with_status(_refusal(self._reasons.pop(0)))

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        await self._take(request, context)
        return pb.EmbedResponse(embedding=pb.Embedding(id="id", model="made"))

    async def Predict(self, request: pb.PredictRequest, context: Context) -> pb.PredictResponse:
        await self._take(request, context)
        return pb.PredictResponse(embedding=pb.Embedding(id="id", model="made"))


_CODES = {
    "EMBEDDING_NOT_FOUND": code_pb2.NOT_FOUND,
    "STORE_UNAVAILABLE": code_pb2.UNAVAILABLE,
    "OVERLOADED": code_pb2.RESOURCE_EXHAUSTED,
}


def _refusal(reason: str) -> grpc.Status:
    status = status_pb2.Status(code=_CODES[reason], message="as written")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="samserve"))
    if reason == "OVERLOADED":
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(10)
        status.details.add().Pack(retry)
    return rpc_status.to_status(status)
