"""Tells other gateways at once what is deleted.

Nothing relies on it: a lost message is made up for by the next check of the key.  It takes an
embedding out of the memory of gateways where it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from samserve.stores.shared.base import CacheServers, Command
from samserve.system.background import supervised

# After an unexpected exception.
_RESTART_S = 10.0


class Invalidation:
    """Publishes names on *channel*, and calls *heard* with those that others publish.

    *begun* is called when some may have been missed, and no more are from now on.
    """

    def __init__(
        self,
        servers: CacheServers,
        channel: bytes,
        begun: Callable[[], None],
        heard: Callable[[bytes], None],
    ) -> None:
        self._channel = channel
        self._listen = partial(servers.listen, channel, begun, heard)
        self._tasks = AsyncExitStack()

    async def open(self) -> None:
        """Start to listen."""
        listening = supervised(
            self._listen, "listening for deletions failed", _RESTART_S, "samserve.cache"
        )
        await self._tasks.enter_async_context(listening)

    async def aclose(self) -> None:
        """Stop listening."""
        await self._tasks.aclose()

    def command(self, name: bytes) -> Command:
        """Return the command that publishes *name*; all nodes pass it on to their listeners."""
        return ("PUBLISH", self._channel, name)
