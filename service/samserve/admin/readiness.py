"""Readiness: follows the engine, and sets what /readyz and gRPC health report."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from samserve.admin.http import Admin
from samserve.engines.base import Engine
from samserve.rpc.server import ApiServer
from samserve.system.background import periodic

# `Engine.ready` returns a known state without a request, so that frequent polls are free.
_INTERVAL_S = 0.1


class Readiness:
    """Reports the readiness of the engine on both listeners, and to *on_change*.

    With *follows* False the listeners stay ready while the engine is unavailable.
    """

    def __init__(
        self,
        engine: Engine,
        api: ApiServer,
        admin: Admin,
        on_change: Callable[[bool], None],
        *,
        follows: bool = True,
    ) -> None:
        self._engine = engine
        self._api = api
        self._admin = admin
        self._on_change = on_change
        self._follows = follows
        self._engine_ready = False

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        """Follow the engine while the block runs; not ready after it."""
        self._report(engine_ready=await self._engine.ready())
        try:
            async with periodic(self._follow, _INTERVAL_S, "following the engine failed"):
                yield
        finally:
            self._set_listeners(ready=False)
            self._on_change(False)

    async def _follow(self) -> None:
        engine_ready = await self._engine.ready()
        if engine_ready != self._engine_ready:
            self._report(engine_ready=engine_ready)

    def _report(self, *, engine_ready: bool) -> None:
        self._engine_ready = engine_ready
        self._on_change(engine_ready)
        self._set_listeners(ready=engine_ready or not self._follows)

    def _set_listeners(self, *, ready: bool) -> None:
        self._admin.ready = ready
        self._api.set_ready(ready=ready)
