"""Sending a stream of requests, for which the server may end the call at any time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, TypeVar, cast

import grpc

_Request = TypeVar("_Request")
_Response = TypeVar("_Response")
_Call = grpc.aio.StreamStreamCall[_Request, _Response]


async def send(call: _Call[_Request, _Response], messages: AsyncIterator[_Request]) -> _Response:
    """Send *messages* and return the only response.

    Raises `grpc.aio.AioRpcError` with the status of the server.  A write that fails because the
    server has ended the call would replace that status with one of gRPC itself (issue 36066 of
    grpc/grpc).  *call* is one for streams in both directions, which clients cannot distinguish:
    only for these does gRPC receive the status meanwhile.
    """
    received: list[grpc.aio.AioRpcError] = []
    call.add_done_callback(lambda _: received.append(_error_of(call)))
    try:
        with suppress(asyncio.InvalidStateError):
            async for message in messages:
                await call.write(message)
            await call.done_writing()
        response = await call.read()
    except grpc.aio.AioRpcError as error:
        # A status of gRPC itself has no metadata.
        raise next((each for each in received if each.trailing_metadata()), error) from None
    assert response is not grpc.aio.EOF, "a call that succeeds has a response"
    return cast(_Response, response)


def _error_of(call: _Call[_Request, _Response]) -> grpc.aio.AioRpcError:
    """Return the status of a call that has ended as an error."""
    return grpc.aio.AioRpcError(
        _known(call.code()),
        _known(call.initial_metadata()),
        _known(call.trailing_metadata()),
        _known(call.details()),
    )


def _known(result: Coroutine[Any, Any, Any]) -> Any:
    """Return the result of a coroutine that does not need to wait."""
    try:
        result.send(None)
    except StopIteration as stop:
        return stop.value
    raise RuntimeError("the call has not ended")
