"""What is known of a Triton that may restart: its models, its health, its shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.discovery import served_bundles
from samserve.engines.triton.failures import NoAnswer, Unreachable
from samserve.engines.triton.rotation import Rotation
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.errors import EngineUnavailable, SamserveError
from samserve.models.repository import Bundle
from samserve.settings import TritonSettings
from samserve.system.background import supervised
from samserve.system.startup_retry import StartupRetry
from samserve.types import ModelInfo

# Between two attempts to reach a Triton that is restarting, when a request has asked for one.
_RETRY_S = 0.2
# Between two attempts with new connections, while there is no answer over those that there are.
_REOPEN_EVERY_S = 5.0
# Time between two looks for models that were not there before.
_LIST_EVERY_S = 5.0
_WAITING = "waiting for the model server"


class HealthMonitor:
    """Looks at Triton again and again, and keeps what it has seen."""

    def __init__(
        self,
        connection: TritonConnection,
        regions: ShmRegions,
        settings: TritonSettings,
        default_model: str,
    ) -> None:
        self._connection = connection
        self._regions = regions
        self._settings = settings
        self._rotation = Rotation(settings, connection)
        self._default_model = default_model
        self._log = structlog.get_logger("samserve.triton")
        self._ready_models: frozenset[str] = frozenset()
        self._list_again = 0.0
        self._reopen_at: float | None = None
        self._logged: tuple[bool, bool] | None = None
        # Set when what is known may be wrong.
        self._stale = True
        self._wake = asyncio.Event()
        # Callers of `look_again`: they wait for a look that begins after their call.
        self._asked: list[asyncio.Future[None]] = []
        self._left_out: tuple[str, ...] = ()
        self._tasks = AsyncExitStack()
        self._watching = False
        self.bundles: Mapping[str, Bundle[str]] = {}
        self.models: Mapping[str, ModelInfo] = {}
        self.healthy = False

    async def open(self) -> None:
        """Wait until Triton serves a model, see whether it shares memory, and keep watching.

        Raises `EngineUnavailable` if it does not come up in time, or refuses to share memory that
        is required, and `Misconfigured` if a file of credentials cannot be used.
        """
        await self._rotation.open()
        retry = StartupRetry(self._settings.startup_s, "triton.startup_s")
        await retry.until_done(self._check, _WAITING)
        if self._settings.shared_memory != "off":
            await retry.until_done(self._offer_shared_memory, _WAITING)
            self._require_shared_memory()
        failure = "the watch over the model server failed"
        watching = supervised(self._watch, failure, _RETRY_S, "samserve.triton")
        await self._tasks.enter_async_context(watching)
        self._watching = True

    def report_failure(self) -> None:
        """Note that a request has met a broken connection; look at once."""
        self.healthy = False
        self._stale = True
        self._wake.set()

    async def look_again(self) -> None:
        """Look at Triton's models at once, and return when that has been done, or has failed."""
        if not self._watching:
            return
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(seen)
        self._wake.set()
        await seen

    async def aclose(self) -> None:
        """Stop watching."""
        self._watching = False
        await self._tasks.aclose()

    async def _offer_shared_memory(self) -> None:
        try:
            self._regions.remove_orphans()
            await self._regions.probe()
        except OSError as error:
            self._regions.refusal = f"no shared memory on this machine: {error.strerror}"
        if self._regions.accepted:
            await self._regions.forget_orphans()

    def _require_shared_memory(self) -> None:
        if self._settings.shared_memory == "required" and not self._regions.accepted:
            raise EngineUnavailable(
                f"the model server shares no memory with us: {self._regions.refusal}"
            )

    async def _watch(self) -> None:
        try:
            while True:
                await self._check_when_due()
        finally:
            # What was seen last says nothing of now.
            self.healthy = False
            _release(self._asked)

    async def _check_when_due(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._settings.health_interval_s)
            # Calls that fail must not keep us busy while Triton is unavailable.
            await asyncio.sleep(_RETRY_S)
        self._wake.clear()
        asked, self._asked = self._asked, []
        reason = ""
        try:
            await self._check()
        except (SamserveError, OSError) as error:
            self.healthy = False
            reason = str(error)
        finally:
            _release(asked)
        self._log_change(reason)

    async def _check(self) -> None:
        """See what there is, over new connections if there is no answer over the old ones."""
        try:
            await self._check_once()
        except (NoAnswer, Unreachable):
            await self._reopen()
            raise
        self._reopen_at = None

    async def _reopen(self) -> None:
        """Look up the name in the url again, as long as no Triton shares memory with us.

        One that does is on this machine, and may still write into our memory: a Triton at another
        address, to which its requests are unknown, would not tell when they have ended.
        """
        now = asyncio.get_running_loop().time()
        if self._reopen_at is None:
            self._reopen_at = now + _REOPEN_EVERY_S
        if now < self._reopen_at or self._regions.shares:
            return
        self._reopen_at = now + _REOPEN_EVERY_S
        with suppress(SamserveError):
            await self._connection.reopen()

    async def _check_once(self) -> None:
        """See what there is; `healthy` only if no request has met anything else meanwhile."""
        stale, self._stale = self._stale, False
        try:
            await self._rotation.look()
            if self._settings.shared_memory != "off":
                await self._regions.restore()
                await self._regions.reap()
            if stale:
                await self._connection.reach()
            await self._discover(stale=stale)
        except BaseException:
            self._stale = True
            raise
        self.healthy = not self._stale

    async def _discover(self, *, stale: bool) -> None:
        now = asyncio.get_running_loop().time()
        # Triton lists its storage for this, which may be far away.
        if stale or now >= self._list_again:
            self._ready_models = await self._connection.ready_models()
            self._list_again = now + _LIST_EVERY_S
        served = await served_bundles(
            self._connection, self._ready_models, self._default_model, self.bundles
        )
        models = {name: bundle.info for name, bundle in served.bundles.items()}
        if models != self.models:
            self._log.info("models discovered", models=list(models))
        for reason in served.left_out:
            if reason not in self._left_out:
                self._log.warning("model left out", reason=reason)
        self.bundles, self.models, self._left_out = served.bundles, models, served.left_out

    def _log_change(self, reason: str) -> None:
        now = (self.healthy, self._regions.accepted)
        if self._logged not in (None, now):
            log = self._log.info if self.healthy else self._log.warning
            log(
                "model server " + ("is here" if self.healthy else "is away"),
                shared_memory=self._regions.accepted,
                reason=reason or None,
            )
        self._logged = now


def _release(asked: Iterable[asyncio.Future[None]]) -> None:
    """Let the callers of `look_again` go on that still wait."""
    for seen in asked:
        if not seen.done():
            seen.set_result(None)
