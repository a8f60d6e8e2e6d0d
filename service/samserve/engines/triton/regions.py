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

import structlog

from samserve.engines.triton.connection import TritonConnection
from samserve.engines.triton.failures import NoAnswer, Unreachable
from samserve.errors import EngineFailure, EngineUnavailable, SamserveError
from samserve.memory.shared import PREFIX, SharedMemory, SharedSegment, region_name


class Regions:
    """Keeps Triton's regions equal to our segments; a region is named like its segment."""

    def __init__(self, connection: TritonConnection, shared: SharedMemory) -> None:
        self._connection = connection
        self._shared = shared
        self._log = structlog.get_logger("samserve.triton")
        self._wanted: dict[str, SharedSegment] = {}
        self._retired: dict[str, tuple[SharedSegment, asyncio.Future[None]]] = {}
        self._restoring = asyncio.Lock()
        self.accepted = False
        self.refusal = ""

    @property
    def retired_bytes(self) -> int:
        """Bytes that lost requests may still write into."""
        return sum(segment.nbytes for segment, _ in self._retired.values())

    async def probe(self) -> None:
        """Find out whether Triton accepts shared memory, by sharing a page with it."""
        segment = self._shared.create(1)
        try:
            await self.add(segment)
        finally:
            self.retire(segment)

    def want(self, segment: SharedSegment) -> None:
        """Have a segment registered when it is first asked for, or at the next `restore`."""
        self._wanted[segment.key] = segment

    async def add(self, segment: SharedSegment) -> None:
        """Register a segment now; look at ``accepted`` for whether Triton took it."""
        self.want(segment)
        self.accepted = await self._register(segment)

    def retire(self, segment: SharedSegment) -> asyncio.Future[None]:
        """Withdraw a segment; the future ends when no request can touch it any more."""
        self._wanted.pop(segment.key, None)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._retired[segment.key] = (segment, future)
        return future

    async def restore(self) -> None:
        """Register what Triton does not know: after its restart, everything."""
        async with self._restoring:
            known = (await self._connection.regions()).values()
            missing = [segment for key, segment in self._wanted.items() if key not in known]
            if not missing:
                return
            results = [await self._register(segment) for segment in missing]
            self.accepted = all(results)

    async def reap(self) -> None:
        """Let go of the retired segments that Triton has let go of."""
        if not self._retired:
            return
        for key in list(self._retired):
            await self._unregister(region_name(key))
        known = (await self._connection.regions()).values()
        for key in [key for key in self._retired if key not in known]:
            segment, future = self._retired.pop(key)
            self._shared.close_segment(segment)
            if not future.done():
                future.set_result(None)

    async def remove_orphans(self) -> None:
        """Remove what gateways that were killed have left, here and in Triton."""
        removed = self._shared.remove_orphans()
        if removed:
            self._log.info("segments of dead gateways removed", segments=len(removed))
        for name, key in (await self._connection.regions()).items():
            # Only called once Triton is known to see the same segments as we do.
            if key.startswith(f"/{PREFIX}") and not self._shared.exists(key):
                await self._unregister(name)

    async def aclose(self) -> None:
        """Let Triton forget everything, if it can be reached, and remove the segments."""
        for key in [*self._wanted, *self._retired]:
            try:
                await self._unregister(region_name(key))
            except EngineUnavailable:
                break
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

    async def _unregister(self, name: str) -> None:
        try:
            await self._connection.unregister(name)
        except EngineFailure as error:
            if "in use" not in str(error):
                raise
