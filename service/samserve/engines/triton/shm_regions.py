"""Tracks the segments that Triton has mapped, and detects when it has released one.

Triton still writes into the output regions of a request that was cancelled or has timed out
(measured).  Therefore every request has a region of its own.  Once Triton no longer lists that
region, the request has ended, or can never begin, because Triton rejects requests with unknown
regions.  This holds across restarts, and for requests that a stopped Triton has not read yet; names
are therefore never reused.  Source: infer_handler.cc, shared_memory_manager.cc of
triton-inference-server/server (a region counts its requests until their responses are complete).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import RequestTimeout, Unreachable
from samserve.errors import EngineFailure, SamserveError
from samserve.memory.posix import PREFIX, SharedMemory, SharedSegment, region_name

# When closing, wait up to a second for the last requests.
_CLOSE_ATTEMPTS, _CLOSE_POLL_S = 10, 0.1


class ShmRegions:
    """Keeps Triton's regions in sync with the segments; a region has the name of its segment."""

    def __init__(self, connection: TritonConnection, shared: SharedMemory) -> None:
        self._connection = connection
        self._shared = shared
        self._log = structlog.get_logger("samserve.triton")
        self._active: dict[str, SharedSegment] = {}
        self._retired: dict[str, tuple[SharedSegment, asyncio.Future[None]]] = {}
        self._orphans: set[str] = set()
        # One at a time: a segment must not be released while it is being registered.
        self._lock = asyncio.Lock()
        self.accepted = False
        self.rejection = ""

    @property
    def retired_bytes(self) -> int:
        """Bytes that requests without a response may still write into."""
        # A copy, because metrics are read in another thread.
        return sum(segment.nbytes for segment, _ in list(self._retired.values()))

    @property
    def in_use(self) -> bool:
        """Whether Triton may have mapped segments of this gateway and write into them."""
        return bool(self._active or self._retired)

    async def probe(self) -> None:
        """Test whether Triton accepts shared memory, by registering a segment of one page."""
        segment = self._shared.create(1)
        try:
            self.accepted = await self.register(segment)
        finally:
            self.retire(segment)
        if not self.accepted:
            # Triton has not mapped it, and may reject unregistering it as well.
            self._retired.pop(segment.key)
            self._shared.close_segment(segment)

    def add(self, segment: SharedSegment) -> None:
        """Add a segment, which is registered by the next `restore`."""
        self._active[segment.key] = segment

    async def register(self, segment: SharedSegment) -> bool:
        """Add a segment and register it now; return False if Triton rejects it."""
        self.add(segment)
        return await self._register(segment)

    def retire(self, segment: SharedSegment) -> asyncio.Future[None]:
        """Remove a segment; the future is done when no request can access it any more."""
        self._active.pop(segment.key, None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retired[segment.key] = (segment, future)
        return future

    async def restore(self) -> None:
        """Register the segments that Triton does not list: all of them after a restart."""
        if not self._active:
            return
        async with self._lock:
            listed = set((await self._connection.regions()).values())
            results = [
                await self._register(segment)
                for key, segment in list(self._active.items())
                # Another caller may have retired it during an earlier registration.
                if key not in listed and key in self._active
            ]
            self.accepted = all(results)

    async def reap(self) -> None:
        """Unregister retired segments and orphans; close the segments that Triton has released."""
        if not self._retired and not self._orphans:
            return
        async with self._lock:
            keys = set(self._retired)
            await self._unregister_all(keys)
            await self._unregister_all(self._orphans)
            listed = set((await self._connection.regions()).values())
        self._orphans &= listed
        for key in keys - listed:
            segment, future = self._retired.pop(key)
            self._shared.close_segment(segment)
            if not future.done():
                future.set_result(None)

    def remove_orphans(self) -> None:
        """Remove the segments of gateways that were killed."""
        removed = self._shared.remove_orphans()
        if removed:
            self._log.info("stale shared memory segments removed", segments=len(removed))

    async def unregister_orphans(self) -> None:
        """Unregister the regions of killed gateways, now or when their last requests have ended.

        Call this only when Triton is known to have the same ``/dev/shm`` as this gateway.
        """
        listed = (await self._connection.regions()).values()
        self._orphans = {
            key for key in listed if key.startswith(f"/{PREFIX}") and not self._shared.exists(key)
        }
        await self.reap()

    async def aclose(self) -> None:
        """Unregister all regions, if Triton is reachable, and remove the segments."""
        keys = {*self._active, *self._retired}
        try:
            for _ in range(_CLOSE_ATTEMPTS):
                await self._unregister_all(keys)
                if not keys & set((await self._connection.regions()).values()):
                    break
                # An older Triton rejects this until the last requests have ended.
                await asyncio.sleep(_CLOSE_POLL_S)
        except SamserveError:
            self._log.info("shared memory segments not unregistered")
        finally:
            for _, future in self._retired.values():
                future.cancel()
            self._shared.close()

    async def _register(self, segment: SharedSegment) -> bool:
        try:
            await self._connection.register(region_name(segment.key), segment.key, segment.nbytes)
        except (RequestTimeout, Unreachable):
            raise
        except SamserveError as error:
            if "already in manager" in str(error):
                return True
            self.rejection = str(error)
            return False
        return True

    async def _unregister_all(self, keys: Iterable[str]) -> None:
        """Unregister regions; the list of regions shows whether Triton has done so."""
        for key in list(keys):
            # Raised if the region is in use, or if shared memory is disabled.
            with suppress(EngineFailure):
                await self._connection.unregister(region_name(key))
