"""Limits of services that can be called without credentials: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from samserve.calls.metadata import size_error
from samserve.calls.slow_clients import PROMPT_S
from samserve.errors import Overloaded
from samserve.rpc.methods import SERVICE
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.scheduling.tenant_limits import TenantLimit

MAX_CALLS = 256
"""Calls of one method at once; a connection has at most as many of each as are free."""
LIFETIME_S = 900.0
"""Time after which a stream is ended; a client that still watches opens a new one."""
WRITE_S = 10.0
"""Time in which a client has to take an answer, all of which are small."""
# Each may hold as much as a message of our own service may have.
_MAX_READERS = 4
# Waiting for a turn to read, and reading.
_READ_TIMEOUT_S = 2 * PROMPT_S

Parse = Callable[[bytes], Any]


class PublicServiceLimits(grpc.aio.ServerInterceptor):
    """Puts every handler of other services than ours behind bounds.

    As in `CallHandler`, they become handlers that stream both ways, so that they begin before their
    request has been received; ours have bounds of their own.  Connections take turns and share
    places, as tenants do there.
    """

    def __init__(self, max_metadata: int) -> None:
        self._max_metadata = max_metadata
        # By method: of those that are served, so that there are few.
        self._limits: dict[str, TenantLimit] = {}
        self._readers = FairSemaphore(_MAX_READERS)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap a handler."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(f"/{SERVICE}/"):
            return handler

        too_large = size_error(details.invocation_metadata or (), self._max_metadata)
        limit = self._limits.get(details.method)
        if limit is None:
            what = f"{details.method} calls"
            limit = TenantLimit(MAX_CALLS, what, "calls", shared=lambda: True)
            self._limits[details.method] = limit

        async def handle(_: Any, rpc: Any) -> None:
            if too_large is not None:
                await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, too_large.message)
            try:
                with limit.hold(rpc.peer()):
                    await self._answer(handler, rpc)
            except Overloaded as error:
                await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)

        return grpc.stream_stream_rpc_method_handler(
            # gRPC would answer bytes that are no such message with UNKNOWN and Python's own text.
            handle,
            None,
            handler.response_serializer,
        )

    async def _answer(self, handler: Any, rpc: Any) -> None:
        try:
            async with asyncio.timeout(LIFETIME_S):
                await self._run(handler, rpc)
        except TimeoutError:
            await rpc.abort(grpc.StatusCode.UNAVAILABLE, "this has been open for long; ask again")

    async def _run(self, handler: Any, rpc: Any) -> None:
        request = await self._first_request(handler.request_deserializer, rpc)
        if handler.request_streaming:
            requests = self._requests(request, handler.request_deserializer, rpc)
            answers = handler.stream_stream(requests, rpc)
        elif handler.response_streaming:
            answers = handler.unary_stream(request, rpc)
        else:
            await self._write(await handler.unary_unary(request, rpc), rpc)
            return
        async for answer in answers:
            await self._write(answer, rpc)

    async def _write(self, answer: Any, rpc: Any) -> None:
        try:
            async with asyncio.timeout(WRITE_S):
                await rpc.write(answer)
        except TimeoutError:
            # A status would wait behind the answer.
            raise asyncio.CancelledError from None

    async def _first_request(self, parse: Parse, rpc: Any) -> Any:
        """Read a request; they are small, and one that does not come at once is not waited for."""
        try:
            request = await self._read(parse, rpc)
        except TimeoutError:
            await rpc.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not arrive")
        if request is grpc.aio.EOF:
            await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is missing")
        return request

    async def _requests(self, first: Any, parse: Parse, rpc: Any) -> AsyncIterator[Any]:
        """Return the first request, and those that follow; a stream that pauses has ended."""
        request = first
        while request is not grpc.aio.EOF:
            yield request
            try:
                request = await self._read(parse, rpc)
            except TimeoutError:
                return

    async def _read(self, parse: Parse, rpc: Any) -> Any:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async with self._readers.hold_for(rpc.peer()), asyncio.timeout(PROMPT_S):
                data = await rpc.read()
        if data is grpc.aio.EOF:
            return data
        try:
            return parse(data)
        except DecodeError:
            text = "the request is not a message of this method"
            await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
