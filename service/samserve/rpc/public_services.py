"""Limits of the services that need no credentials: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from samserve.calls.metadata import size_error
from samserve.calls.slow_clients import SLOW_AFTER_S
from samserve.errors import Overloaded
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.scheduling.tenant_limits import TenantLimit

MAX_CALLS = 256
"""Concurrent calls of each method; fairly shared between connections (`TenantLimit`)."""
LIFETIME_S = 900.0
"""Maximum duration of a stream; a client that still watches opens a new one."""
WRITE_TIMEOUT_S = 10.0
"""Timeout for sending a response message, all of which are small."""
# A read may buffer as many bytes as the largest request of the API.
_MAX_READERS = 4
# Waiting for a slot to read, and reading.
_READ_TIMEOUT_S = 2 * SLOW_AFTER_S

Parse = Callable[[bytes], Any]


class PublicServiceLimits:
    """Adds services other than the API to *server*, with limits; generated code takes it for one.

    As in `CallHandler`, their handlers become bidirectional streaming, so that they begin before
    their request has been received.  Slots are shared fairly between connections, as they are
    between tenants in the API.  An interceptor would do the same, for calls of the API too.
    """

    def __init__(self, server: grpc.aio.Server, max_metadata: int) -> None:
        self._server = server
        self._max_metadata = max_metadata
        # By method; only served methods are added, so that there are few.
        self._limits: dict[str, TenantLimit] = {}
        self._readers = FairSemaphore(_MAX_READERS)

    def add_generic_rpc_handlers(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Add handlers, as a server does."""
        self._server.add_generic_rpc_handlers([_Limited(self, each) for each in handlers])

    def add_registered_method_handlers(self, *_: Any) -> None:
        """Do nothing, as `grpc.aio.Server`: generated code adds the same handlers twice."""

    def limited(self, handler: Any, details: grpc.HandlerCallDetails) -> Any:
        """Wrap a handler."""
        too_large = size_error(details.invocation_metadata or (), self._max_metadata)
        limit = self._limits.get(details.method)
        if limit is None:
            noun = f"concurrent {details.method} calls"
            limit = TenantLimit(MAX_CALLS, noun, "calls", shared=lambda: True)
            self._limits[details.method] = limit

        async def handle(_: Any, rpc: Any) -> None:
            if too_large is not None:
                await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, too_large.message)
            try:
                with limit.acquire(rpc.peer()):
                    await self._serve(handler, rpc)
            except Overloaded as error:
                await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, error.message)

        return grpc.stream_stream_rpc_method_handler(
            handle,
            # No deserializer: gRPC would report invalid bytes as UNKNOWN, with Python's text.
            None,
            handler.response_serializer,
        )

    async def _serve(self, handler: Any, rpc: Any) -> None:
        try:
            async with asyncio.timeout(LIFETIME_S):
                await self._run(handler, rpc)
        except TimeoutError:
            text = f"the maximum duration of {LIFETIME_S:g} s is reached; open a new stream"
            await rpc.abort(grpc.StatusCode.UNAVAILABLE, text)

    async def _run(self, handler: Any, rpc: Any) -> None:
        request = await self._first_request(handler.request_deserializer, rpc)
        if handler.request_streaming:
            requests = self._requests(request, handler.request_deserializer, rpc)
            responses = handler.stream_stream(requests, rpc)
        elif handler.response_streaming:
            responses = handler.unary_stream(request, rpc)
        else:
            await self._write(await handler.unary_unary(request, rpc), rpc)
            return
        async for response in responses:
            await self._write(response, rpc)

    async def _write(self, response: Any, rpc: Any) -> None:
        try:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await rpc.write(response)
        except TimeoutError:
            # A status would be queued behind the response.
            raise asyncio.CancelledError from None

    async def _first_request(self, parse: Parse, rpc: Any) -> Any:
        """Read a request; requests are small, so the timeout is short."""
        try:
            request = await self._read(parse, rpc)
        except TimeoutError:
            await rpc.abort(
                grpc.StatusCode.DEADLINE_EXCEEDED, "the request was not received in time"
            )
        if request is grpc.aio.EOF:
            await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is missing")
        return request

    async def _requests(self, first: Any, parse: Parse, rpc: Any) -> AsyncIterator[Any]:
        """Yield the first request and those that follow, until the stream ends or pauses."""
        request = first
        while request is not grpc.aio.EOF:
            yield request
            try:
                request = await self._read(parse, rpc)
            except TimeoutError:
                return

    async def _read(self, parse: Parse, rpc: Any) -> Any:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            async with self._readers.acquire_for(rpc.peer()), asyncio.timeout(SLOW_AFTER_S):
                data = await rpc.read()
        if data is grpc.aio.EOF:
            return data
        try:
            return parse(data)
        except DecodeError:
            text = "the request is not a message of this method"
            await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, text)


class _Limited(grpc.GenericRpcHandler):
    """The handlers of a service, with limits."""

    def __init__(self, limits: PublicServiceLimits, handlers: grpc.GenericRpcHandler) -> None:
        self._limits = limits
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a method, None if there is none."""
        handler = self._handlers.service(details)
        return None if handler is None else self._limits.limited(handler, details)
