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
from samserve.rpc.field_limit import is_quick_to_parse, max_fields, parse
from samserve.rpc.transport import GrpcTransport, Rpc
from samserve.settings import LimitSettings

Unary = Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, RequestContext], AsyncGenerator[Message]]


class CallHandler:
    """Creates the gRPC handler of every RPC of the service."""

    def __init__(self, pipeline: CallPipeline, limits: LimitSettings) -> None:
        self._pipeline = pipeline
        self._max_fields = max_fields(limits)

    def handler(
        self, method: Method, request: type[Message], body: Unary | Streaming
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Return a gRPC handler that calls *body* with the request and its context."""

        async def serve(call: Call) -> None:
            # Not bound to a name: the request can be freed while its response is sent.
            await _send(body(await self._receive(request, call), call.context), call)

        async def handle(_: AsyncIterator[bytes], rpc: Rpc) -> None:
            await self._pipeline.run(method, GrpcTransport(rpc), serve)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _receive(self, request: type[Message], call: Call) -> Message:
        data = await call.receive()
        with call.context.clock.stage("prepare"):
            # A large request may hold millions of messages.
            if is_quick_to_parse(request, data):
                return parse(request, data, self._max_fields)
            return await asyncio.to_thread(parse, request, data, self._max_fields)


async def _send(
    response: Coroutine[Any, Any, Message] | AsyncGenerator[Message], call: Call
) -> None:
    if isinstance(response, Coroutine):
        await _send_message(await response, call, last=True)
        return
    # Closed at once when the client cancels, not when it is garbage collected.
    async with aclosing(response) as messages:
        async for message in messages:
            await _send_message(message, call, last=False)


async def _send_message(message: Message, call: Call, *, last: bool) -> None:
    with call.context.clock.stage("serialize"):
        data = message.SerializeToString()
    await call.send(data, last=last)
