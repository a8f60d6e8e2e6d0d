"""One call of the client: its requests share a request id and a deadline."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Self, TypeAlias, TypeVar

import grpc

from samserve.client import client_stream
from samserve.client.connection import Connection
from samserve.client.errors import EmbeddingNotFound, from_grpc
from samserve.client.images import Upload
from samserve.client.metadata import Token, call_metadata
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_WithImage = TypeVar("_WithImage", pb.EmbedRequest, pb.PredictRequest)
_Rpc: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[_Request, _Response]
_Method: TypeAlias = Callable[[grpc.aio.Channel], _Rpc[_Request, _Response]]
_StreamRpc: TypeAlias = grpc.aio.UnaryStreamMultiCallable[_Request, _Response]
_StreamMethod: TypeAlias = Callable[[grpc.aio.Channel], _StreamRpc[_Request, _Response]]

_now = time.monotonic
# gRPC treats a much longer timeout as one that has passed.
_MAX_TIMEOUT_S = 365 * 86400.0


@dataclass(frozen=True, slots=True)
class Call:
    """Sends the requests of one call, with one request id and one deadline.

    Raises the classes of `samserve.client.errors`.
    """

    connection: Connection
    token: Token
    request_id: str
    deadline: float | None

    @classmethod
    def begin(
        cls, connection: Connection, token: Token, request_id: str, timeout_s: float | None
    ) -> Self:
        """Begin a call; an empty *request_id* is replaced by a new one."""
        deadline = None if timeout_s is None else _now() + min(timeout_s, _MAX_TIMEOUT_S)
        return cls(connection, token, request_id or uuid.uuid4().hex, deadline)

    async def send(self, method: _Method[_Request, _Response], request: _Request) -> _Response:
        """Send one request; *method* returns the RPC method of a channel."""
        with self.connection.in_use():
            try:
                # Not bound to a name: the traceback of an error would keep the channel.
                return await method(self.connection.channel())(
                    request, timeout=self._remaining_s(), metadata=self._metadata()
                )
            except grpc.aio.AioRpcError as error:
                raise self._converted(error)  # noqa: B904

    async def upload(
        self, method: _Method[_WithImage, _Response], request: _WithImage, upload: Upload
    ) -> _Response:
        """Send the digest if there is one; send the image if not, or if the server lacks it."""
        if upload.digest is not None:
            request.image.CopyFrom(upload.digest)
            with suppress(EmbeddingNotFound):
                return await self.send(method, request)
        request.image.CopyFrom(upload.message)
        return await self.send(method, request)

    async def stream(
        self, method: _StreamMethod[_Request, _Response], request: _Request
    ) -> AsyncGenerator[_Response]:
        """Yield the messages of a stream; closing the generator cancels it on the server."""
        with self.connection.in_use():
            call = method(self.connection.channel())(
                request, timeout=self._remaining_s(), metadata=self._metadata()
            )
            try:
                async for message in call:
                    yield message
            except grpc.aio.AioRpcError as error:
                raise self._converted(error)  # noqa: B904
            finally:
                call.cancel()
                # The traceback of an error would keep the channel: see `forks`.
                del call

    async def put_embedding(self, chunks: AsyncIterator[bytes]) -> pb.PutEmbeddingResponse:
        """Send the chunks of a file; an exception that they raise cancels the call."""
        with self.connection.in_use():
            call = _put_method(self.connection.channel())(
                timeout=self._remaining_s(), metadata=self._metadata()
            )
            messages = (pb.PutEmbeddingRequest(chunk=chunk) async for chunk in chunks)
            try:
                return await client_stream.send(call, messages)
            except grpc.aio.AioRpcError as error:
                raise self._converted(error)  # noqa: B904
            finally:
                call.cancel()
                # The traceback of an error would keep the channel: see `forks`.
                del call

    def _remaining_s(self) -> float | None:
        """Return the remaining seconds, at least 0; None without a deadline."""
        return None if self.deadline is None else max(0.0, self.deadline - _now())

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        return call_metadata(self.request_id, self.token)

    def _converted(self, error: grpc.aio.AioRpcError) -> Exception:
        return from_grpc(error, self.request_id, encrypted=self.connection.encrypted)


def stub(channel: grpc.aio.Channel) -> samserve_pb2_grpc.SegmentationServiceAsyncStub:
    """Return the methods of the service on a channel."""
    return samserve_pb2_grpc.SegmentationServiceStub(channel)


def embed_method(channel: grpc.aio.Channel) -> _Rpc[pb.EmbedRequest, pb.EmbedResponse]:
    """Return the Embed method of a channel."""
    return stub(channel).Embed


def predict_method(channel: grpc.aio.Channel) -> _Rpc[pb.PredictRequest, pb.PredictResponse]:
    """Return the Predict method of a channel."""
    return stub(channel).Predict


def automask_method(
    channel: grpc.aio.Channel,
) -> _StreamRpc[pb.AutoMaskRequest, pb.AutoMaskResponse]:
    """Return the AutoMask method of a channel."""
    return stub(channel).AutoMask


def get_method(
    channel: grpc.aio.Channel,
) -> _StreamRpc[pb.GetEmbeddingRequest, pb.GetEmbeddingResponse]:
    """Return the GetEmbedding method of a channel."""
    return stub(channel).GetEmbedding


def _put_method(
    channel: grpc.aio.Channel,
) -> grpc.aio.StreamStreamMultiCallable[pb.PutEmbeddingRequest, pb.PutEmbeddingResponse]:
    """Return PutEmbedding as a method with streams in both directions: see `client_stream`."""
    service = pb.DESCRIPTOR.services_by_name["SegmentationService"].full_name
    return channel.stream_stream(
        f"/{service}/PutEmbedding",
        pb.PutEmbeddingRequest.SerializeToString,
        pb.PutEmbeddingResponse.FromString,
    )
