"""A gRPC server with scripted responses, for behaviour that the real server never shows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class ReceivedCall:
    """A received call; ``remaining_s`` is the time until its deadline when it arrived."""

    request: Any
    metadata: dict[str, Any]
    remaining_s: float


@dataclass(frozen=True)
class Failure:
    """A status with the bytes of its details."""

    code: grpc.StatusCode
    details: bytes


def _unary(response: Any) -> Any:
    async def method(self: ScriptedServicer, request: Any, context: Context) -> Any:
        await self._record(request, context)
        return response

    return method


class ScriptedServicer(samserve_pb2_grpc.SegmentationServiceServicer):
    """Fails the first calls as scripted, then succeeds; records all calls.

    A str is a reason of the server.  AutoMask fails after *events_before* messages.
    """

    def __init__(
        self,
        *failures: grpc.StatusCode | str | Failure,
        before: Callable[[], object] = lambda: None,
        events_before: int = 0,
    ) -> None:
        self._failures = list(failures)
        self._before = before
        self._events_before = events_before
        self.calls: list[ReceivedCall] = []

    async def _record(self, request: Any, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.calls.append(ReceivedCall(request, metadata, context.time_remaining() or 0.0))
        self._before()
        if not self._failures:
            return
        failure = self._failures.pop(0)
        if isinstance(failure, grpc.StatusCode):
            await context.abort(failure, "as scripted")
        failure = _failure_of(failure) if isinstance(failure, str) else failure
        trailing = (("grpc-status-details-bin", failure.details),)
        await context.abort(failure.code, "as scripted", trailing)

    Embed = _unary(pb.EmbedResponse(embedding=pb.Embedding(id="id", model="other")))
    Predict = _unary(pb.PredictResponse(embedding=pb.Embedding(id="id", model="other")))
    DeleteEmbedding = _unary(pb.DeleteEmbeddingResponse(deleted=True))
    ListModels = _unary(pb.ListModelsResponse())

    async def AutoMask(  # noqa: N802 - a name of the protocol
        self, request: pb.AutoMaskRequest, context: Context
    ) -> AsyncIterator[pb.AutoMaskResponse]:
        for done in range(self._events_before):
            progress = pb.AutoMaskProgress(evaluated_point_count=done, total_point_count=9)
            yield pb.AutoMaskResponse(progress=progress)
        await self._record(request, context)
        yield pb.AutoMaskResponse(summary=pb.AutoMaskSummary(mask_count=0))


@asynccontextmanager
async def serving(
    servicer: ScriptedServicer | None, credentials: grpc.ServerCredentials | None = None
) -> AsyncIterator[str]:
    """Serve *servicer*, or no service, on a free port; yield the address."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    if servicer is not None:
        samserve_pb2_grpc.add_SegmentationServiceServicer_to_server(servicer, server)
    if credentials is None:
        port = server.add_insecure_port("localhost:0")
    else:
        port = server.add_secure_port("localhost:0", credentials)
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)


_CODES = {
    "EMBEDDING_NOT_FOUND": grpc.StatusCode.NOT_FOUND,
    "CACHE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def _failure_of(reason: str) -> Failure:
    code: grpc.StatusCode = _CODES[reason]
    status = status_pb2.Status(code=code.value[0], message="as scripted")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason=reason, domain="samserve"))
    if reason == "OVERLOADED":
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(10)
        status.details.add().Pack(retry)
    return Failure(code, status.SerializeToString())
