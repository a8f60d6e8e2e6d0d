"""Bounds on services that anybody may call without credentials: health and reflection."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from samserve.rpc.methods import SERVICE
from samserve.rpc.receiving import PROMPT_S

MOST_CALLS = 256
"""Calls at once; further ones are refused."""
LIFETIME_S = 900.0
"""Time after which a stream is ended; whoever watches asks again."""
# Each may hold as much as a message of our own service may have.
_MOST_READERS = 8


class Bystanders(grpc.aio.ServerInterceptor):
    """Puts every handler of other services than ours behind bounds.

    As in `Boundary`, they become handlers that stream both ways, so that they begin before their
    request has been received; ours have bounds of their own.
    """

    def __init__(self) -> None:
        self._open = 0
        self._readers = asyncio.Semaphore(_MOST_READERS)

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
            if self._open >= MOST_CALLS:
                text = f"{MOST_CALLS} calls of this kind are open, the most that are taken"
                await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)
            with self._counted():
                await self._answer(handler, rpc)

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
        requests = self._requests(rpc)
        if handler.request_streaming:
            answers = handler.stream_stream(requests, rpc)
        else:
            request = await anext(requests, None)
            if request is None:
                await rpc.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is missing")
            if not handler.response_streaming:
                await rpc.write(await handler.unary_unary(request, rpc))
                return
            answers = handler.unary_stream(request, rpc)
        async for answer in answers:
            await rpc.write(answer)

    async def _requests(self, rpc: Any) -> AsyncIterator[Any]:
        """Read requests, which are small: one that does not come at once is not waited for."""
        while True:
            try:
                async with self._readers, asyncio.timeout(PROMPT_S):
                    request = await rpc.read()
            except TimeoutError:
                await rpc.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the request did not arrive")
            if request is grpc.aio.EOF:
                return
            yield request

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
