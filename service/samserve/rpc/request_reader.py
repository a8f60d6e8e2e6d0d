"""Reading requests without letting those that trickle in fill the memory."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import grpc

from samserve.context import deadline_exceeded
from samserve.errors import InvalidRequest
from samserve.rpc.admission import SLOW_REQUESTS, Admission
from samserve.rpc.methods import Method
from samserve.rpc.slow_clients import SlowClientTimeout

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
        with SlowClientTimeout(
            partial(self._slow_place, method, tenant), self._receive_s, "receive"
        ):
            data = await rpc.read()
        if isinstance(data, bytes):
            return data
        raise await self._explanation(rpc)

    def _slow_place(self, method: Method, tenant: str) -> AbstractContextManager[None]:
        if method.small:
            raise deadline_exceeded("receive")
        return self._admission.admit(SLOW_REQUESTS, tenant)

    async def _explanation(self, rpc: Rpc) -> BaseException:
        """Tell a client that has left, or whose message was refused, from one that sent nothing."""
        for _ in range(10):
            # gRPC cancels this task for the former, a moment after it has ended the reading.
            await asyncio.sleep(0.001)
            if rpc.cancelled():
                return asyncio.CancelledError()
        return InvalidRequest("request", "is missing")
