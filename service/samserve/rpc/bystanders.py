"""Bounds on services that anybody may call without credentials: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc

from samserve.context import RequestContext
from samserve.errors import Overloaded
from samserve.gate import FairGate
from samserve.principal import Principal
from samserve.rpc.admission import Admission
from samserve.rpc.methods import SERVICE
from samserve.rpc.receiving import PROMPT_S
from samserve.settings import AdmissionSettings

MOST_CALLS = 256
"""Calls of one method at once; a connection has at most three times as many as are free."""
LIFETIME_S = 900.0
"""Time after which a stream is ended; whoever watches asks again."""
# Each may hold as much as a message of our own service may have.
_MOST_READERS = 4
# Waiting for a turn to read, and reading.
_PATIENCE_S = 2 * PROMPT_S


class Bystanders(grpc.aio.ServerInterceptor):
    """Puts every handler of other services than ours behind bounds.

    As in `Boundary`, they become handlers that stream both ways, so that they begin before their
    request has been received; ours have bounds of their own.  Connections take turns and share
    places, as tenants do there.
    """

    def __init__(self) -> None:
        self._places = Admission(AdmissionSettings(other=MOST_CALLS), shared=lambda: True)
        self._readers = FairGate(_MOST_READERS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a handler."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{SERVICE}/"):
            return handler

        async def handle(_: Any, rpc: Any) -> None:
            try:
                with self._places.admit(details.method, rpc.peer()):
                    await self._answer(handler, rpc)
            except Overloaded as error:
                await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)

        return grpc.stream_stream_rpc_method_handler(
            handle, handler.request_deserializer, handler.response_serializer
        )

    async def _answer(self, handler: Any, rpc: Any) -> None:
        try:
            async with asyncio.timeout(LIFETIME_S):
                await self._run(handler, rpc)
        except TimeoutError:
            await rpc.abort(grpc.StatusCode.UNAVAILABLE, "this has been open for long; ask again")

    async def _run(self, handler: Any, rpc: Any) -> None:
        request = await self._first_request(rpc)
        if handler.request_streaming:
            answers = handler.stream_stream(self._requests(request, rpc), rpc)
        elif handler.response_streaming:
            answers = handler.unary_stream(request, rpc)
        else:
            await rpc.write(await handler.unary_unary(request, rpc))
            return
        async for answer in answers:
            await rpc.write(answer)

    async def _first_request(self, rpc: Any) -> Any:
        """Read a request; they are small, and one that does not come at once is not waited for."""
        try:
            request = await self._read(rpc)
        except TimeoutError:
            await rpc.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not arrive")
        if request is grpc.aio.EOF:
            await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is missing")
        return request

    async def _requests(self, first: Any, rpc: Any) -> AsyncIterator[Any]:
        """Give the first request, and those that follow; a stream that pauses has ended."""
        request = first
        while request is not grpc.aio.EOF:
            yield request
            try:
                request = await self._read(rpc)
            except TimeoutError:
                return

    async def _read(self, rpc: Any) -> Any:
        async with asyncio.timeout(_PATIENCE_S):
            turn = RequestContext(Principal(rpc.peer()))
            async with self._readers.hold(turn), asyncio.timeout(PROMPT_S):
                return await rpc.read()
