"""Which segments Triton has mapped, and when it has certainly let go of one.

Triton still writes into the output regions of a request whose caller has cancelled or given up
(measured).  So every request carries a region that is its own.  Once Triton no longer lists that
region, the request has ended, or can never begin because Triton refuses requests with unknown
regions.  This holds across restarts, and for requests that a stopped Triton has yet to read; names
are therefore never used twice.  Source: infer_handler.cc, shared_memory_manager.cc of
triton-inference-server/server (a region counts its requests until their responses are complete).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import NoAnswer, Unreachable
from samserve.errors import EngineFailure, SamserveError
from samserve.memory.posix import PREFIX, SharedMemory, SharedSegment, region_name

# At the end, wait up to a second for the last requests.
_FAREWELLS, _FAREWELL_S = 10, 0.1


class ShmRegions:
    """Keeps Triton's regions equal to our segments; a region is named like its segment."""

    def __init__(self, connection: TritonConnection, shared: SharedMemory) -> None:
        self._connection = connection
        self._shared = shared
        self._log = structlog.get_logger("samserve.triton")
        self._wanted: dict[str, SharedSegment] = {}
        self._retired: dict[str, tuple[SharedSegment, asyncio.Future[None]]] = {}
        self._orphans: set[str] = set()
        # One at a time: a segment that is being registered must not be let go of.
        self._changing = asyncio.Lock()
        self.accepted = False
        self.refusal = ""

    @property
    def retired_bytes(self) -> int:
        """Bytes that lost requests may still write into."""
        # A copy, because metrics are read in another thread.
        return sum(segment.nbytes for segment, _ in list(self._retired.values()))

    @property
    def shares(self) -> bool:
        """Whether a Triton may have segments of ours mapped, and write into them."""
        return bool(self._wanted or self._retired)

    async def probe(self) -> None:
        """Find out whether Triton accepts shared memory, by sharing a page with it."""
        segment = self._shared.create(1)
        try:
            self.accepted = await self.add(segment)
        finally:
            self.retire(segment)
        if not self.accepted:
            # Triton may refuse to unregister, too, and has nothing to let go of.
            self._retired.pop(segment.key)
            self._shared.close_segment(segment)

    def want(self, segment: SharedSegment) -> None:
        """Have a segment registered at the next `restore`."""
        self._wanted[segment.key] = segment

    async def add(self, segment: SharedSegment) -> bool:
        """Register a segment now; False if Triton does not take it."""
        self.want(segment)
        return await self._register(segment)

    def retire(self, segment: SharedSegment) -> asyncio.Future[None]:
        """Withdraw a segment; the future ends when no request can touch it any more."""
        self._wanted.pop(segment.key, None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retired[segment.key] = (segment, future)
        return future

    async def restore(self) -> None:
        """Register what Triton does not know: after its restart, everything."""
        if not self._wanted:
            return
        async with self._changing:
            known = set((await self._connection.regions()).values())
            taken = [
                await self._register(segment)
                for key, segment in list(self._wanted.items())
                # Another caller may have retired it while others were registered.
                if key not in known and key in self._wanted
            ]
            self.accepted = all(taken)

    async def reap(self) -> None:
        """Let go of the retired segments, and of dead gateways' regions, that Triton lets go of."""
        if not self._retired and not self._orphans:
            return
        async with self._changing:
            keys = set(self._retired)
            await self._unregister_all(keys)
            await self._unregister_all(self._orphans)
            known = set((await self._connection.regions()).values())
        self._orphans &= known
        for key in keys - known:
            segment, future = self._retired.pop(key)
            self._shared.close_segment(segment)
            if not future.done():
                future.set_result(None)

    def remove_orphans(self) -> None:
        """Remove the segments that gateways which were killed have left."""
        removed = self._shared.remove_orphans()
        if removed:
            self._log.info("segments of dead gateways removed", segments=len(removed))

    async def forget_orphans(self) -> None:
        """Have Triton forget dead gateways' regions, now or when their last requests have ended.

        Only to be called once Triton is known to see the same segments as this gateway.
        """
        known = (await self._connection.regions()).values()
        self._orphans = {
            key for key in known if key.startswith(f"/{PREFIX}") and not self._shared.exists(key)
        }
        await self.reap()

    async def aclose(self) -> None:
        """Let Triton forget everything, if it can be reached, and remove the segments."""
        keys = {*self._wanted, *self._retired}
        try:
            for _ in range(_FAREWELLS):
                await self._unregister_all(keys)
                if not keys & set((await self._connection.regions()).values()):
                    break
                # An older Triton refuses while the last requests end.
                await asyncio.sleep(_FAREWELL_S)
        except SamserveError:
            self._log.info("the model server keeps our segments until it ends")
        finally:
            for _, future in self._retired.values():
                future.cancel()
            self._shared.close()

    async def _register(self, segment: SharedSegment) -> bool:
        try:
            await self._connection.register(region_name(segment.key), segment.key, segment.nbytes)
        except (NoAnswer, Unreachable):
            raise
        except SamserveError as error:
            if "already in manager" in str(error):
                return True
            self.refusal = str(error)
            return False
        return True

    async def _unregister_all(self, keys: Iterable[str]) -> None:
        """Ask Triton to forget regions; whether it does is seen in its list."""
        for key in list(keys):
            # In use, or shared memory is switched off altogether.
            with suppress(EngineFailure):
                await self._connection.unregister(region_name(key))
