"""Saying outside whether the engine can be expected to answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from samserve.engines.base import Engine
from samserve.rpc.admin import Admin
from samserve.rpc.server import ApiServer

# An engine answers from what it knows, so that asking often costs nothing.
_INTERVAL_S = 0.1


class Readiness:
    """Keeps both listeners, and whoever is *told*, saying what the engine says of itself."""

    def __init__(
        self, engine: Engine, api: ApiServer, admin: Admin, told: Callable[[bool], None]
    ) -> None:
        self._engine = engine
        self._api = api
        self._admin = admin
        self._told = told

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the engine while the block runs; not ready after it."""
        self._say(ready=await self._engine.ready())
        following = asyncio.create_task(self._follow())
        try:
            yield
        finally:
            following.cancel()
            with suppress(asyncio.CancelledError):
                await following
            self._say(ready=False)

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_INTERVAL_S)
            ready = await self._engine.ready()
            if ready != self._admin.ready:
                self._say(ready=ready)

    def _say(self, *, ready: bool) -> None:
        self._admin.ready = ready
        self._told(ready)
        self._api.set_ready(ready=ready)
