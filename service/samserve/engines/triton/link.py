"""What is known of a Triton that may restart: its models, its health, its shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress

import structlog

from samserve.engines.repository import Pair
from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.discovery import served_pairs
from samserve.engines.triton.regions import Regions
from samserve.errors import EngineUnavailable, SamserveError
from samserve.settings import TritonSettings
from samserve.types import ModelInfo

# Between two attempts to reach a Triton that is loading or restarting, and between two log lines.
_RETRY_S = 0.2
_SAY_SO_EVERY_S = 10.0


class TritonLink:
    """Looks at Triton again and again, and keeps what it has seen."""

    def __init__(
        self,
        connection: TritonConnection,
        regions: Regions,
        settings: TritonSettings,
        default_model: str,
    ) -> None:
        self._connection = connection
        self._regions = regions
        self._settings = settings
        self._default_model = default_model
        self._log = structlog.get_logger("samserve.triton")
        self._ready_models: frozenset[str] = frozenset()
        self._stale = True
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self.pairs: Mapping[str, Pair] = {}
        self.models: Mapping[str, ModelInfo] = {}
        self.healthy = False

    async def open(self) -> None:
        """Wait until Triton serves a model, see whether it shares memory, and keep watching.

        Raises `EngineUnavailable` if it does not come up in time, or refuses to share memory that
        is required.
        """
        await self._wait_until_served()
        if self._settings.shared_memory != "off":
            await self._offer_shared_memory()
        self._watching = asyncio.create_task(self._watch())

    def suspect(self) -> None:
        """Take note that a request has met a broken connection; look at once."""
        self.healthy = False
        self._stale = True
        self._wake.set()

    async def aclose(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            with suppress(asyncio.CancelledError):
                await self._watching

    async def _wait_until_served(self) -> None:
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._settings.startup_s
        say_so = loop.time()
        while True:
            try:
                return await self._look()
            except EngineUnavailable as error:
                now = loop.time()
                if now >= give_up:
                    raise
                if now >= say_so:
                    self._log.info("waiting for the model server", reason=str(error))
                    say_so = now + _SAY_SO_EVERY_S
            await asyncio.sleep(_RETRY_S)

    async def _offer_shared_memory(self) -> None:
        try:
            await self._regions.probe()
        except OSError as error:
            self._regions.refusal = f"no shared memory on this machine: {error.strerror}"
        if self._regions.accepted:
            await self._regions.remove_orphans()
        elif self._settings.shared_memory == "required":
            raise EngineUnavailable(
                f"the model server shares no memory with us: {self._regions.refusal}"
            )

    async def _watch(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._settings.health_interval_s)
                # Whoever woke us must not keep us busy while Triton is away.
                await asyncio.sleep(_RETRY_S)
            self._wake.clear()
            try:
                await self._look()
            except SamserveError as error:
                self._note(healthy=False, reason=str(error))
            else:
                self._note(healthy=True)

    async def _look(self) -> None:
        stale, self._stale = self._stale, False
        try:
            ready = await self._connection.ready_models()
            if stale or ready != self._ready_models:
                await self._discover(ready)
            if self._settings.shared_memory != "off":
                await self._regions.restore()
                await self._regions.reap()
        except BaseException:
            self._stale = True
            raise
        self.healthy = True

    async def _discover(self, ready: frozenset[str]) -> None:
        pairs = await served_pairs(self._connection, ready, self._default_model)
        models = {name: pair.info for name, pair in pairs.items()}
        if models != self.models:
            self._log.info("models discovered", models=list(models))
        self.pairs, self.models, self._ready_models = pairs, models, ready

    def _note(self, *, healthy: bool, reason: str = "") -> None:
        if healthy != self._last_said:
            say = self._log.info if healthy else self._log.warning
            say("model server " + ("is back" if healthy else "is away"), reason=reason or None)
            self._last_said = healthy
        self.healthy = healthy

    _last_said = True
