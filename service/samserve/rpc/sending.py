"""Sending answers without letting clients that do not take them hold the places of others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import grpc

from samserve.rpc.admission import SLOW_ANSWERS, Admission
from samserve.rpc.slow_clients import SlowClientTimeout

Rpc = grpc.aio.ServicerContext[Any, Any]


class Sender:
    """Waits until a client has taken a message.

    HTTP/2 lets a client hold back the answer to a call for as long as it likes.  A call whose work
    is done gives its place, and its share of the quota, to the next one if its answer is not taken
    at once, and holds one of a bounded number of places for slow answers instead.
    """

    def __init__(self, admission: Admission, send_s: float) -> None:
        self._admission = admission
        self._send_s = send_s

    async def send(self, data: bytes, rpc: Rpc) -> None:
        """Send a message of a stream, whose work goes on, so that it keeps its place.

        Raises `DeadlineExceeded` if the client does not take it in time.
        """
        with SlowClientTimeout(nullcontext, self._send_s, "send"):
            await rpc.write(data)

    async def send_last(self, data: bytes, rpc: Rpc, tenant: str, place: ExitStack) -> None:
        """Send all that is left to be done of a call, and close *place* if that is slow.

        Raises `DeadlineExceeded` if the client does not take it in time, and `Overloaded` if too
        many are slow.
        """
        with SlowClientTimeout(partial(self._slow_place, tenant, place), self._send_s, "send"):
            await rpc.write(data)

    def _slow_place(self, tenant: str, place: ExitStack) -> AbstractContextManager[None]:
        return _moved(place, self._admission.admit(SLOW_ANSWERS, tenant))


@contextmanager
def _moved(place: ExitStack, to: AbstractContextManager[None]) -> Iterator[None]:
    with to:
        place.close()
        yield
