"""Shared memory for single requests: the encoder's input image, or the decoder's logits."""

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
    """A pool of reusable segments, one per request, of at most *budget* bytes in total.

    To be used from one event loop.
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
        metrics.triton.register_pool_bytes("total", lambda: self._bytes)
        metrics.triton.register_pool_bytes("quarantined", lambda: regions.retired_bytes)

    async def acquire(self, nbytes: int) -> SharedSegment | None:
        """Return a segment of at least *nbytes*; None if the request must use messages."""
        if not self._regions.accepted:
            return None
        size = _size_class(nbytes)
        if self._idle[size]:
            return self._idle[size].pop()
        self._evict_idle(size)
        if self._bytes + size > self._budget:
            return None
        return await self._create(size)

    def release(self, segment: SharedSegment) -> None:
        """Return a segment to the pool whose request has ended."""
        self._idle[segment.nbytes].append(segment)

    def release_after(self, segment: SharedSegment, array: Array) -> None:
        """Return a segment to the pool when the last view of *array*, inside it, is freed."""
        root = array.base if array.base is not None else array
        weakref.finalize(root, self._release_threadsafe, segment).atexit = False

    def retire(self, segment: SharedSegment) -> asyncio.Future[None]:
        """Remove a segment whose request has no response; the future is done when it has ended."""
        future = self._regions.retire(segment)
        future.add_done_callback(lambda _: self._subtract(segment))
        return future

    async def _create(self, size: int) -> SharedSegment | None:
        self._bytes += size
        try:
            segment = self._shared.create(size)
        except OSError:
            self._bytes -= size
            return None
        registered = False
        try:
            with suppress(MemoryExhausted):
                # Clearing megabytes of pages takes milliseconds.
                await asyncio.to_thread(segment.commit, 0, segment.nbytes)
                registered = await self._regions.register(segment)
        finally:
            if not registered:
                self.retire(segment)
        return segment if registered else None

    def _evict_idle(self, size: int) -> None:
        """Evict idle segments of other sizes, to free memory at least for the next request."""
        for other, idle in self._idle.items():
            while other != size and idle and self._bytes + size > self._budget:
                self.retire(idle.pop())
                if self._regions.retired_bytes >= size:
                    return

    def _subtract(self, segment: SharedSegment) -> None:
        self._bytes -= segment.nbytes

    def _release_threadsafe(self, segment: SharedSegment) -> None:
        # The last view may be freed in any thread, and after the loop has ended.
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.release, segment)


def _size_class(nbytes: int) -> int:
    """Round up to one of four sizes per octave, so that similar requests can reuse segments."""
    step = max(mmap.PAGESIZE, 1 << max(0, nbytes.bit_length() - 3))
    return -(-nbytes // step) * step
