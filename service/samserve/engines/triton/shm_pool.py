"""Shared memory for single requests: an image on its way in, logits on their way out."""

from __future__ import annotations

import asyncio
import mmap
import weakref
from collections import defaultdict
from contextlib import suppress

from samserve.engines.triton.shm_regions import ShmRegions
from samserve.errors import MemoryExhausted
from samserve.memory.posix import SharedMemory, SharedSegment
from samserve.telemetry.metrics import Metrics
from samserve.types import Array


class ShmPool:
    """Hands out segments, one a request, and uses them again; at most *budget* bytes of them.

    Used from one event loop.
    """

    def __init__(
        self, shared: SharedMemory, regions: ShmRegions, budget: int, metrics: Metrics
    ) -> None:
        self._shared = shared
        self._regions = regions
        self._budget = budget
        self._loop = asyncio.get_running_loop()
        self._idle: defaultdict[int, list[SharedSegment]] = defaultdict(list)
        self._bytes = 0
        metrics.triton.register_scratch_bytes("all", lambda: self._bytes)
        metrics.triton.register_scratch_bytes("quarantined", lambda: regions.retired_bytes)

    async def take(self, nbytes: int) -> SharedSegment | None:
        """Take a segment of at least *nbytes*; None if the request has to do without."""
        if not self._regions.accepted:
            return None
        size = _size_class(nbytes)
        if self._idle[size]:
            return self._idle[size].pop()
        self._drop_idle_of_others(size)
        if self._bytes + size > self._budget:
            return None
        return await self._create(size)

    def give_back(self, segment: SharedSegment) -> None:
        """Take back a segment whose request has been answered."""
        self._idle[segment.nbytes].append(segment)

    def give_back_after(self, segment: SharedSegment, array: Array) -> None:
        """Take back a segment when the last view of *array*, which lies in it, is gone."""
        root = array.base if array.base is not None else array
        weakref.finalize(root, self._give_back_from_anywhere, segment).atexit = False

    def retire(self, segment: SharedSegment) -> asyncio.Future[None]:
        """Take back a segment whose request was lost; the future ends when that is over."""
        future = self._regions.retire(segment)
        future.add_done_callback(lambda _: self._forget(segment))
        return future

    async def _create(self, size: int) -> SharedSegment | None:
        self._bytes += size
        try:
            segment = self._shared.create(size)
        except OSError:
            self._bytes -= size
            return None
        taken = False
        try:
            with suppress(MemoryExhausted):
                # Clearing megabytes of pages takes milliseconds.
                await asyncio.to_thread(segment.commit, 0, segment.nbytes)
                taken = await self._regions.add(segment)
        finally:
            if not taken:
                self.retire(segment)
        return segment if taken else None

    def _drop_idle_of_others(self, size: int) -> None:
        """Make room, for the next request of this size at the latest."""
        for other, idle in self._idle.items():
            while other != size and idle and self._bytes + size > self._budget:
                self.retire(idle.pop())
                if self._regions.retired_bytes >= size:
                    return

    def _forget(self, segment: SharedSegment) -> None:
        self._bytes -= segment.nbytes

    def _give_back_from_anywhere(self, segment: SharedSegment) -> None:
        # The last view may go in any thread, and after the loop has ended.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.give_back, segment)


def _size_class(nbytes: int) -> int:
    """Round up to one of four sizes an octave, so that requests of similar sizes share segments."""
    step = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 3))
    return -(-nbytes // step) * step
