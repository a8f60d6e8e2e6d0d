"""Monitors a Triton that may restart: its health, its models and its shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack, suppress

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.discovery import served_bundles
from samserve.engines.triton.failures import RequestTimeout, Unreachable
from samserve.engines.triton.rotation import CredentialRotation
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.errors import EngineUnavailable, SamserveError
from samserve.models.repository import Bundle
from samserve.settings import TritonSettings
from samserve.system.background import supervised
from samserve.system.startup_retry import StartupRetry
from samserve.types import ModelInfo

# Between two checks that failed requests have triggered, while Triton restarts.
_RETRY_S = 0.2
# Between two attempts with new connections, while Triton does not respond over the current ones.
_REOPEN_INTERVAL_S = 5.0
# Between two listings of Triton's models.
_LIST_INTERVAL_S = 5.0
_WAITING = "waiting for Triton"


class HealthMonitor:
    """Checks Triton periodically and keeps the last known state."""

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
        self._rotation = CredentialRotation(settings, connection)
        self._default_model = default_model
        self._log = structlog.get_logger("samserve.triton")
        self._ready_models: Mapping[str, str] = {}
        self._list_at = 0.0
        self._reopen_at: float | None = None
        self._logged: tuple[bool, bool] | None = None
        # Set when the known state may be out of date.
        self._stale = True
        self._wake = asyncio.Event()
        # Callers of `refresh`: they wait for a check that begins after their call.
        self._waiters: list[asyncio.Future[None]] = []
        self._skipped: tuple[str, ...] = ()
        self._tasks = AsyncExitStack()
        self._running = False
        # Versions that this gateway has put into service and that Triton's configurations do not
        # describe yet, each with the digest that they described then.
        self._activated: dict[str, tuple[Bundle[str], str]] = {}
        self.bundles: Mapping[str, Bundle[str]] = {}
        self.models: Mapping[str, ModelInfo] = {}
        self.healthy = False

    async def open(self) -> None:
        """Wait until Triton serves a model, try shared memory, and start the periodic checks.

        Raises `EngineUnavailable` if Triton does not become ready in time, or if shared memory is
        required but unavailable, and `Misconfigured` if a credentials file is invalid.
        """
        await self._rotation.open()
        retry = StartupRetry(self._settings.startup_timeout_s, "triton.startup_timeout_s")
        await retry.run(self._check, _WAITING)
        if self._settings.shared_memory != "off":
            await retry.run(self._try_shared_memory, _WAITING)
            self._require_shared_memory()
        monitoring = supervised(
            self._monitor, "monitoring of Triton failed", _RETRY_S, "samserve.triton"
        )
        await self._tasks.enter_async_context(monitoring)
        self._running = True

    def report_failure(self) -> None:
        """Report that the connection of a request broke; triggers an immediate check."""
        self.healthy = False
        self._stale = True
        self._wake.set()

    def activate(self, bundle: Bundle[str]) -> None:
        """Put a version into service that Triton has loaded beside the one it describes."""
        name = bundle.info.name
        described = self._activated.get(name, (bundle, self.models[name].digest))[1]
        self._activated[name] = bundle, described
        self.bundles = {**self.bundles, name: bundle}
        self.models = {**self.models, name: bundle.info}

    async def refresh(self) -> None:
        """Refresh the state of Triton's models; return when that has completed or failed."""
        if not self._running:
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(done)
        self._wake.set()
        await done

    async def aclose(self) -> None:
        """Stop the periodic checks."""
        self._running = False
        await self._tasks.aclose()

    async def _try_shared_memory(self) -> None:
        try:
            self._regions.remove_orphans()
            await self._regions.probe()
        except OSError as error:
            self._regions.rejection = f"no shared memory on this machine: {error.strerror}"
        if self._regions.accepted:
            await self._regions.unregister_orphans()

    def _require_shared_memory(self) -> None:
        if self._settings.shared_memory == "required" and not self._regions.accepted:
            raise EngineUnavailable(
                f"shared memory with Triton is required but unavailable: {self._regions.rejection}"
            )

    async def _monitor(self) -> None:
        try:
            while True:
                await self._check_when_due()
        finally:
            # The last known state is out of date.
            self.healthy = False
            _release(self._waiters)

    async def _check_when_due(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._settings.health_interval_s)
            # Limits the rate of checks that failed calls trigger while Triton is unavailable.
            await asyncio.sleep(_RETRY_S)
        self._wake.clear()
        waiters, self._waiters = self._waiters, []
        reason = ""
        try:
            await self._check()
        except (SamserveError, OSError) as error:
            self.healthy = False
            reason = str(error)
        finally:
            _release(waiters)
        self._log_state_change(reason)

    async def _check(self) -> None:
        """Check Triton once; if it does not respond, reopen the connections."""
        try:
            await self._check_once()
        except (RequestTimeout, Unreachable):
            await self._reopen()
            raise
        self._reopen_at = None

    async def _reopen(self) -> None:
        """Resolve the host name in the url again, unless a Triton shares memory with this gateway.

        A Triton that does is on this machine and may still write into that memory: a Triton at
        another address does not know those requests and could not report when they have ended.
        """
        now = asyncio.get_running_loop().time()
        if self._reopen_at is None:
            self._reopen_at = now + _REOPEN_INTERVAL_S
        if now < self._reopen_at or self._regions.in_use:
            return
        self._reopen_at = now + _REOPEN_INTERVAL_S
        with suppress(SamserveError):
            await self._connection.reopen()

    async def _check_once(self) -> None:
        """Refresh the known state; set `healthy` only if no request has failed in the meantime."""
        stale, self._stale = self._stale, False
        try:
            await self._rotation.refresh()
            if self._settings.shared_memory != "off":
                await self._regions.restore()
                await self._regions.reap()
            if stale:
                await self._connection.ensure_connected()
            await self._discover(stale=stale)
        except BaseException:
            self._stale = True
            raise
        self.healthy = not self._stale

    async def _discover(self, *, stale: bool) -> None:
        now = asyncio.get_running_loop().time()
        # Triton reads its model storage for this, which may be remote.
        if stale or now >= self._list_at:
            self._ready_models = await self._connection.ready_models()
            self._list_at = now + _LIST_INTERVAL_S
        served = await served_bundles(
            self._connection, self._ready_models, self._default_model, self.bundles
        )
        bundles = self._with_activated(served.bundles)
        models = {name: bundle.info for name, bundle in bundles.items()}
        if models != self.models:
            self._log.info("models discovered", models=list(models))
        for reason in served.skipped:
            if reason not in self._skipped:
                self._log.warning("model skipped", reason=reason)
        self.bundles, self.models, self._skipped = bundles, models, served.skipped

    def _with_activated(self, found: Mapping[str, Bundle[str]]) -> Mapping[str, Bundle[str]]:
        """Replace those found by those that this gateway has put into service since."""
        for name, (_, described) in list(self._activated.items()):
            if name not in found or found[name].info.digest != described:
                # Triton describes it now, or something else was loaded.
                del self._activated[name]
        activated = {name: bundle for name, (bundle, _) in self._activated.items()}
        return {**found, **activated}

    def _log_state_change(self, reason: str) -> None:
        state = (self.healthy, self._regions.accepted)
        if self._logged not in (None, state):
            log = self._log.info if self.healthy else self._log.warning
            log(
                "Triton ready" if self.healthy else "Triton unavailable",
                shared_memory=self._regions.accepted,
                reason=reason or None,
            )
        self._logged = state


def _release(waiters: Iterable[asyncio.Future[None]]) -> None:
    """Wake the callers of `refresh` that are still waiting."""
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(None)
