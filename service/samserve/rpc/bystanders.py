"""Streams that anybody may open without credentials, health's Watch and reflection: so many."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from samserve.rpc.methods import SERVICE

MOST_STREAMS = 256


class Bystanders(grpc.aio.ServerInterceptor):
    """Refuses one more stream of other services than ours, whose calls have bounds of their own."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._open = 0

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        details: grpc.HandlerCallDetails,
    ) -> Any:
        """Put the bound around handlers that stream."""
        handler = await continuation(details)
        ours = details.method.startswith(f"/{SERVICE}/")
        if handler is None or ours or not handler.response_streaming:
            return handler
        if handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._bounded(handler.stream_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        return grpc.unary_stream_rpc_method_handler(
            self._bounded(handler.unary_stream),
            handler.request_deserializer,
            handler.response_serializer,
        )

    def _bounded(self, behaviour: Any) -> Any:
        """Wrap a handler, which may be a generator or write to its context by itself."""

        async def generate(request: Any, rpc: Any) -> AsyncIterator[Any]:
            await self._refuse_beyond(rpc)
            with self._counted():
                async for message in behaviour(request, rpc):
                    yield message

        async def write(request: Any, rpc: Any) -> None:
            await self._refuse_beyond(rpc)
            with self._counted():
                await behaviour(request, rpc)

        return generate if inspect.isasyncgenfunction(behaviour) else write

    async def _refuse_beyond(self, rpc: Any) -> None:
        if self._open >= self._most:
            text = f"{self._most} streams of this kind are open, the most that are taken"
            await rpc.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, text)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
