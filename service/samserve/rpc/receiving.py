"""Reading requests without letting those that trickle in fill the memory."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, cast

import grpc

from samserve.context import deadline_exceeded
from samserve.errors import InvalidRequest, SamserveError
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
        with _Patience(partial(self._slow_place, method, tenant), self._receive_s):
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


class _Patience:
    """Cancels the reading in its block, and raises why, as `asyncio.timeout` does.

    After a moment it enters what *slow_place* gives, which may refuse, and after *seconds* more the
    time is over.  A timer costs next to nothing, a task for every reading would be a tenth of the
    smallest call.
    """

    def __init__(
        self, slow_place: Callable[[], AbstractContextManager[None]], seconds: float
    ) -> None:
        self._slow_place = slow_place
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._held = ExitStack()
        self._error: SamserveError | None = None

    def __enter__(self) -> None:
        self._task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._cancelling = self._task.cancelling()
        self._timer = self._loop.call_later(min(PROMPT_S, self._seconds), self._begin_slowness)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        self._held.close()
        if self._error is None:
            return
        ours = self._task.uncancel() <= self._cancelling
        if ours and kind is asyncio.CancelledError:
            raise self._error from None

    def _begin_slowness(self) -> None:
        try:
            # It may refuse when it is called, and when it is entered.
            self._held.enter_context(self._slow_place())
        except SamserveError as error:
            self._end(error)
        else:
            self._timer = self._loop.call_later(self._seconds, self._give_up)

    def _give_up(self) -> None:
        self._end(deadline_exceeded("receive"))

    def _end(self, error: SamserveError) -> None:
        self._error = error
        self._task.cancel()
