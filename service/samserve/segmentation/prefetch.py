"""Work that nobody waits for: bounded in number and in bytes, and told about when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextlib import ExitStack
from typing import Any, TypeAlias

import structlog

from samserve.context import Priority
from samserve.errors import SamserveError
from samserve.scheduling.fair_semaphore import FairGate
from samserve.scheduling.tenant_limits import Places

Work: TypeAlias = Callable[[], Coroutine[Any, Any, None]]

# Enough for an engine that batches; what waits here can still be made at once for who needs it.
_AT_A_TIME = 4


class Prefetches:
    """Runs pieces of work in the background, some at a time; `aclose` gives up what is not done.

    At most what *places* allow, with at most as many bytes of pictures between them as *room* does.
    *ended* is told how each ends: ``ok``, ``cancelled`` or ``failed``.
    """

    def __init__(
        self,
        places: Places | None = None,
        room: Places | None = None,
        ended: Callable[[str], None] = lambda outcome: None,
    ) -> None:
        self._places = places or Places(64, "prefetches", "prefetch")
        self._room = room or Places(256 << 20, "bytes of prefetches", "prefetch_bytes")
        self._ended = ended
        self._turns = FairGate(_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        # What is asked for again while it is pending is begun once.
        self._keys: dict[Hashable, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("samserve.prefetch")

    @property
    def pending(self) -> int:
        """Pieces of work that are not done."""
        return len(self._tasks)

    def start(self, key: Hashable, tenant: str, nbytes: int, work: Work) -> bool:
        """Do *work*, which holds *nbytes* until it ends; False if *key* is pending already.

        Raises `Overloaded`.
        """
        if key in self._keys:
            return False
        with ExitStack() as held:
            held.enter_context(self._places.hold(tenant))
            held.enter_context(self._room.hold(tenant, nbytes))
            place = held.pop_all()
        task = asyncio.create_task(self._run(tenant, work))
        self._tasks.add(task)
        self._keys[key] = task

        def end(task: asyncio.Task[None]) -> None:
            place.close()
            self._tasks.discard(task)
            if self._keys.get(key) is task:
                del self._keys[key]
            self._tell(task)

        task.add_done_callback(end)
        return True

    async def _run(self, tenant: str, work: Work) -> None:
        async with self._turns.hold_for(tenant, Priority.BULK):
            await work()

    def forget(self, key: Hashable) -> None:
        """Let *key* be begun anew although it is pending."""
        self._keys.pop(key, None)

    async def aclose(self) -> None:
        """Give up what is not done."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _tell(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self._ended("cancelled" if task.cancelled() else "failed" if error is not None else "ok")
        if isinstance(error, SamserveError):
            self._log.info("a prefetch failed", reason=error.reason)
        elif error is not None:
            self._log.error("a prefetch failed", exc_info=error)
