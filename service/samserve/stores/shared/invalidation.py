"""Telling other gateways at once what is deleted.

Nothing relies on it: a notice that is lost is made up for by the next look at the key.  It takes an
embedding out of the memory of gateways that nobody asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.node import Command, NodeUnavailable

# Between two rounds over the nodes: at first, and when all of them go on refusing.
_AGAIN_S, _LATER_S = 0.5, 10.0


class Notices:
    """Publishes names on a channel of the cluster, and gives *heard* those that others publish.

    *begun* is called when some may have been missed, and no more are from now on.
    """

    def __init__(
        self,
        client: ClusterClient,
        channel: bytes,
        begun: Callable[[], None],
        heard: Callable[[bytes], None],
    ) -> None:
        self._client = client
        self._channel = channel
        self._begun = begun
        self._heard = heard
        self._log = structlog.get_logger("samserve.cache")
        self._pause_s = _AGAIN_S
        self._listening: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to listen, and go on through failures."""
        self._listening = asyncio.create_task(self._listen())
        self._listening.add_done_callback(self._go_on)

    async def aclose(self) -> None:
        """Stop listening."""
        if self._listening is not None:
            self._listening.cancel()
            await asyncio.wait([self._listening])

    def command(self, name: bytes) -> Command:
        """Give the command that publishes *name*; all nodes hand it on to those who listen."""
        return ("PUBLISH", self._channel, name)

    async def _listen(self) -> None:
        while True:
            for node in self._client.by_health():
                try:
                    await node.listen(self._channel, self._begin, self._heard)
                except NodeUnavailable as error:
                    self._say(str(error))
            await asyncio.sleep(self._pause_s)
            self._pause_s = min(2 * self._pause_s, _LATER_S)

    def _begin(self) -> None:
        self._pause_s = _AGAIN_S
        self._begun()

    def _say(self, reason: str) -> None:
        """Log the first failure of a row."""
        if self._pause_s == _AGAIN_S:
            self._log.info("listening for deletions anew", reason=reason)

    def _go_on(self, listening: asyncio.Task[None]) -> None:
        """Begin again after what nobody has foreseen."""
        if listening.cancelled() or listening.exception() is None:
            return
        self._log.error("listening for deletions failed", exc_info=listening.exception())
        asyncio.get_running_loop().call_later(_LATER_S, self.open)
