"""Work that nobody waits for: bounded in number and in bytes, and told about when it fails."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from contextlib import ExitStack
from typing import Any

import structlog

from samserve.errors import Overloaded, SamserveError
from samserve.places import Places


class Prefetches:
    """Runs pieces of work in the background; what is not done at `aclose` is given up.

    At most what *places* allow, with at most *most_bytes* of pictures between them.
    """

    def __init__(self, places: Places | None = None, most_bytes: int = 256 << 20) -> None:
        self._places = places or Places(64, "prefetches")
        self._most_bytes = most_bytes
        self._bytes = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # What is asked for again while it is pending is begun once.
        self._keys: dict[Hashable, asyncio.Task[None]] = {}
        self._log = structlog.get_logger("samserve.prefetch")

    @property
    def pending(self) -> int:
        """Pieces of work that are not done."""
        return len(self._tasks)

    def start(
        self, key: Hashable, tenant: str, nbytes: int, work: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Begin *work*, which holds *nbytes* until it ends, unless *key* is pending.

        Raises `Overloaded`.
        """
        if key in self._keys:
            return
        with ExitStack() as held:
            held.enter_context(self._places.hold(tenant))
            if self._bytes and self._bytes + nbytes > self._most_bytes:
                raise Overloaded(
                    f"prefetches of {self._most_bytes} bytes are in flight, the most there may be",
                    metadata={"limit": str(self._most_bytes)},
                )
            place = held.pop_all()
        task = asyncio.create_task(work())
        self._bytes += nbytes
        self._tasks.add(task)
        self._keys[key] = task

        def end(task: asyncio.Task[None]) -> None:
            place.close()
            self._bytes -= nbytes
            self._tasks.discard(task)
            if self._keys.get(key) is task:
                del self._keys[key]
            self._tell(task)

        task.add_done_callback(end)

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
        if isinstance(error, SamserveError):
            self._log.info("a prefetch failed", reason=error.reason)
        elif error is not None:
            self._log.error("a prefetch failed", exc_info=error)
