"""What is known of a Triton that may restart: its models, its health, its shared memory."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import suppress

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.credentials import CredentialFiles
from samserve.engines.triton.discovery import served_pairs
from samserve.engines.triton.failures import NoAnswer, Unreachable
from samserve.engines.triton.rotation import Rotation
from samserve.engines.triton.shm_regions import Regions
from samserve.errors import EngineUnavailable, SamserveError
from samserve.models.repository import Pair
from samserve.settings import TritonSettings
from samserve.system.startup_retry import StartupRetry
from samserve.types import ModelInfo

# Between two attempts to reach a Triton that is restarting, when a request has asked for one.
_RETRY_S = 0.2
# Between two attempts with new connections, while there is no answer over those that there are.
_REOPEN_EVERY_S = 5.0
# Time between two looks for models that were not there before.
_LIST_EVERY_S = 5.0
_WAITING = "waiting for the model server"


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
        self._rotation = Rotation(CredentialFiles(settings), connection)
        self._default_model = default_model
        self._log = structlog.get_logger("samserve.triton")
        self._ready_models: frozenset[str] = frozenset()
        self._list_again = 0.0
        self._reopen_at: float | None = None
        self._said: tuple[bool, bool] | None = None
        # Set when what is known may be wrong.
        self._stale = True
        self._wake = asyncio.Event()
        # Who waits for a look that begins after they have asked for it.
        self._asked: list[asyncio.Future[None]] = []
        self._left_out: tuple[str, ...] = ()
        self._watching: asyncio.Task[None] | None = None
        self.pairs: Mapping[str, Pair] = {}
        self.models: Mapping[str, ModelInfo] = {}
        self.healthy = False

    async def open(self) -> None:
        """Wait until Triton serves a model, see whether it shares memory, and keep watching.

        Raises `EngineUnavailable` if it does not come up in time, or refuses to share memory that
        is required, or if a file of credentials cannot be used.
        """
        await self._rotation.open()
        retry = StartupRetry(self._settings.startup_s, "triton.startup_s")
        await retry.until_done(self._look, _WAITING)
        if self._settings.shared_memory != "off":
            await retry.until_done(self._offer_shared_memory, _WAITING)
            self._insist()
        self._watching = asyncio.create_task(self._watch())
        self._watching.add_done_callback(self._note_end)

    def suspect(self) -> None:
        """Take note that a request has met a broken connection; look at once."""
        self.healthy = False
        self._stale = True
        self._wake.set()

    async def look_again(self) -> None:
        """Look at Triton's models at once, and return when that has been done, or has failed."""
        if self._watching is None or self._watching.done():
            return
        seen: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asked.append(seen)
        self._wake.set()
        await seen

    async def aclose(self) -> None:
        """Stop watching."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    async def _offer_shared_memory(self) -> None:
        try:
            self._regions.remove_orphans()
            await self._regions.probe()
        except OSError as error:
            self._regions.refusal = f"no shared memory on this machine: {error.strerror}"
        if self._regions.accepted:
            await self._regions.forget_orphans()

    def _insist(self) -> None:
        if self._settings.shared_memory == "required" and not self._regions.accepted:
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
            asked, self._asked = self._asked, []
            reason = ""
            try:
                await self._look()
            except (SamserveError, OSError) as error:
                self.healthy = False
                reason = str(error)
            finally:
                _tell(asked)
            self._say(reason)

    async def _look(self) -> None:
        """See what there is, over new connections if there is no answer over the old ones."""
        try:
            await self._look_once()
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

    async def _look_once(self) -> None:
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
        served = await served_pairs(
            self._connection, self._ready_models, self._default_model, self.pairs
        )
        models = {name: pair.info for name, pair in served.pairs.items()}
        if models != self.models:
            self._log.info("models discovered", models=list(models))
        for reason in served.left_out:
            if reason not in self._left_out:
                self._log.warning("model left out", reason=reason)
        self.pairs, self.models, self._left_out = served.pairs, models, served.left_out

    def _say(self, reason: str) -> None:
        """Log what has changed."""
        now = (self.healthy, self._regions.accepted)
        if self._said not in (None, now):
            say = self._log.info if self.healthy else self._log.warning
            say(
                "model server " + ("is here" if self.healthy else "is away"),
                shared_memory=self._regions.accepted,
                reason=reason or None,
            )
        self._said = now

    def _note_end(self, watching: asyncio.Task[None]) -> None:
        # Nobody looks any more: nobody may believe what was seen last.
        self.healthy = False
        _tell(self._asked)
        if not watching.cancelled() and watching.exception() is not None:
            self._log.error("the watch over the model server ended", exc_info=watching.exception())


def _tell(asked: Iterable[asyncio.Future[None]]) -> None:
    """Let everybody go on who has asked, and still waits."""
    for seen in asked:
        if not seen.done():
            seen.set_result(None)
