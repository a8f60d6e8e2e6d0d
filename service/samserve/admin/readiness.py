"""Saying outside whether calls can be expected to be answered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from samserve.admin.http import Admin
from samserve.engines.base import Engine
from samserve.rpc.server import ApiServer

# An engine answers from what it knows, so that asking often costs nothing.
_INTERVAL_S = 0.1


class Readiness:
    """Keeps both listeners, and whoever is *told*, saying what the engine says of itself.

    With *follows* False the listeners go on saying that they are ready while the engine is away.
    """

    def __init__(
        self,
        engine: Engine,
        api: ApiServer,
        admin: Admin,
        told: Callable[[bool], None],
        *,
        follows: bool = True,
    ) -> None:
        self._engine = engine
        self._api = api
        self._admin = admin
        self._told = told
        self._follows = follows
        # What the engine has said last.
        self._answers = False

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the engine while the block runs; not ready after it."""
        self._say(answers=await self._engine.ready())
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            self._tell(ready=False)
            self._told(False)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            answers = await self._engine.ready()
            if answers != self._answers:
                self._say(answers=answers)

    def _say(self, *, answers: bool) -> None:
        self._answers = answers
        self._told(answers)
        self._tell(ready=answers or not self._follows)

    def _tell(self, *, ready: bool) -> None:
        self._admin.ready = ready
        self._api.set_ready(ready=ready)
