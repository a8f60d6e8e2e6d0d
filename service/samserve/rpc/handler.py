"""gRPC handlers: parse the request, run the method in the call pipeline, serialize the response.

Every method is registered as bidirectional streaming, which clients cannot distinguish.  So a
handler begins before the request has been received: an unauthorized caller cannot send megabytes, a
request that arrives too slowly is aborted, and an invalid request gets a samserve error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf.message import Message

from samserve.calls.methods import Method
from samserve.calls.pipeline import Call, CallPipeline
from samserve.context import RequestContext
from samserve.rpc.codecs import PROTO, Codec
from samserve.rpc.field_limit import max_fields
from samserve.rpc.transport import GrpcTransport, Rpc
from samserve.settings import LimitSettings

Unary = Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, RequestContext], AsyncGenerator[Message]]
Body = Unary | Streaming
"""A method of the service.  Its first argument is the request; of a client stream, an asynchronous
iterator of the messages."""


class CallHandler:
    """Creates the gRPC handler of every RPC of the service."""

    def __init__(self, pipeline: CallPipeline, limits: LimitSettings) -> None:
        self._pipeline = pipeline
        self._max_fields = max_fields(limits)

    def handler(
        self, method: Method, request: type[Message], body: Body
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a gRPC handler that calls *body* with the request and its context."""
        serve = self.serving(method, request, body)

        async def handle(_: AsyncIterator[bytes], rpc: Rpc) -> None:
            await self._pipeline.run(method, GrpcTransport(rpc), serve)

        return grpc.stream_stream_rpc_method_handler(handle)

    def serving(
        self, method: Method, request: type[Message], body: Body, codec: Codec = PROTO
    ) -> Callable[[Call], Coroutine[Any, Any, None]]:
        """Return a function that serves one call with *body*, in any transport and encoding."""

        async def serve(call: Call) -> None:
            # Not bound to a name: the request can be freed while its response is sent.
            await _send(
                body(await self._parse(request, await call.receive(), call, codec), call.context),
                call,
                codec,
            )

        async def serve_stream(call: Call) -> None:
            async with aclosing(self._messages(request, call, codec)) as messages:
                await _send(body(messages, call.context), call, codec)

        return serve_stream if method.client_streams else serve

    async def _messages(
        self, request: type[Message], call: Call, codec: Codec
    ) -> AsyncGenerator[Message]:
        """Yield the messages of a client stream as they arrive."""
        while (data := await call.receive_next()) is not None:
            yield await self._parse(request, data, call, codec)

    async def _parse(
        self, request: type[Message], data: bytes, call: Call, codec: Codec
    ) -> Message:
        with call.context.clock.stage("prepare"):
            # A large request may hold millions of messages.
            if codec.is_quick_to_parse(request, data):
                return codec.parse(request, data, self._max_fields)
            return await asyncio.to_thread(codec.parse, request, data, self._max_fields)


async def _send(
    response: Coroutine[Any, Any, Message] | AsyncGenerator[Message], call: Call, codec: Codec
) -> None:
    if isinstance(response, Coroutine):
        await _send_message(await response, call, codec, last=True)
        return
    # Closed at once when the client cancels, not when it is garbage collected.
    async with aclosing(response) as messages:
        async for message in messages:
            await _send_message(message, call, codec, last=False)


async def _send_message(message: Message, call: Call, codec: Codec, *, last: bool) -> None:
    with call.context.clock.stage("serialize"):
        if codec.is_quick_to_serialize(message):
            data = codec.serialize(message)
        else:
            data = await asyncio.to_thread(codec.serialize, message)
    await call.send(data, last=last)
