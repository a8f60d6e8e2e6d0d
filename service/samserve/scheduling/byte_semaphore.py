"""A bound on bytes that are under way at once."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ByteBudget:
    """Lets up to *most* bytes pass at a time; who comes later waits, in order of arrival."""

    def __init__(self, most: int) -> None:
        self._most = self._free = most
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @asynccontextmanager
    async def hold(self, nbytes: int) -> AsyncIterator[None]:
        """Wait for room and keep it while the block runs; what is larger than all passes alone."""
        nbytes = min(nbytes, self._most)
        await self._take(nbytes)
        try:
            yield
        finally:
            self._give(nbytes)

    async def _take(self, nbytes: int) -> None:
        if not self._waiting and nbytes <= self._free:
            self._free -= nbytes
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append((turn, nbytes))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # The room was handed over in the same turn of the loop.
                self._give(nbytes)
            else:
                self._wake()  # it may have been the one that did not fit
            raise

    def _give(self, nbytes: int) -> None:
        self._free += nbytes
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            turn, nbytes = self._waiting[0]
            if not turn.done():
                if nbytes > self._free:
                    return
                self._free -= nbytes
                turn.set_result(None)
            self._waiting.popleft()
