"""Reading requests without letting those that trickle in fill the memory."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from samserve.context import deadline_exceeded
from samserve.errors import InvalidRequest
from samserve.rpc.admission import SLOW_REQUESTS, Admission
from samserve.rpc.methods import Method

PROMPT_S = 1.0
"""Time in which a request arrives whose sender does not dawdle."""

Rpc = grpc.aio.ServicerContext[Any, Any]


class Receiver:
    """Waits for the one message of a call.

    gRPC keeps what has come of a message, so each call that waits may hold as much as a request may
    have.  What has not come at once takes one of a bounded number of places; where a request has
    next to nothing in it, it is not waited for any longer.
    """

    def __init__(self, admission: Admission, receive_s: float) -> None:
        self._admission = admission
        self._receive_s = receive_s

    async def receive(self, method: Method, rpc: Rpc, tenant: str) -> bytes:
        """Give the message's bytes.

        Raises `DeadlineExceeded` if it takes too long, `Overloaded` if too many are slow, and
        `InvalidRequest` if the client has sent none.
        """
        reading = asyncio.ensure_future(rpc.read())
        try:
            if not await _ends(reading, min(PROMPT_S, self._receive_s)):
                await self._wait_longer(method, tenant, reading)
            data = await reading
        finally:
            reading.cancel()
        if isinstance(data, bytes):
            return data
        raise await self._explanation(rpc)

    async def _wait_longer(self, method: Method, tenant: str, reading: asyncio.Future[Any]) -> None:
        if method.small:
            raise deadline_exceeded("receive")
        with self._admission.admit(SLOW_REQUESTS, tenant):
            if not await _ends(reading, self._receive_s):
                raise deadline_exceeded("receive")

    async def _explanation(self, rpc: Rpc) -> BaseException:
        """Tell a client that has left, or whose message was refused, from one that sent nothing."""
        for _ in range(10):
            # gRPC cancels this task for the former, a moment after it has ended the reading.
            await asyncio.sleep(0.001)
            if rpc.cancelled():
                return asyncio.CancelledError()
        return InvalidRequest("request", "is missing")


async def _ends(reading: asyncio.Future[Any], seconds: float) -> bool:
    done, _ = await asyncio.wait({reading}, timeout=seconds)
    return bool(done)
