"""Telling other gateways at once what is deleted.

Nothing relies on it: a notice that is lost is made up for by the next look at the key.  It takes an
embedding out of the memory of gateways that nobody asks for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from samserve.stores.cluster.client import ClusterClient
from samserve.stores.cluster.node import Command, NodeUnavailable

_AGAIN_S = 0.5


class Notices:
    """Publishes names on a channel of the cluster, and gives *heard* those that others publish."""

    def __init__(
        self, client: ClusterClient, channel: bytes, heard: Callable[[bytes], None]
    ) -> None:
        self._client = client
        self._channel = channel
        self._heard = heard
        self._log = structlog.get_logger("samserve.cache")
        self._said = ""
        self._listening: asyncio.Task[None] | None = None

    def open(self) -> None:
        """Begin to listen, and go on through failures."""
        self._listening = asyncio.create_task(self._listen())
        self._listening.add_done_callback(self._note_end)

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
                    await node.listen(self._channel, self._heard)
                except NodeUnavailable as error:
                    self._say(str(error))
            await asyncio.sleep(_AGAIN_S)

    def _note_end(self, listening: asyncio.Task[None]) -> None:
        if not listening.cancelled() and listening.exception() is not None:
            self._log.error("deletions are not heard any more", exc_info=listening.exception())

    def _say(self, reason: str) -> None:
        """Log what is new."""
        if reason != self._said:
            self._log.info("listening for deletions anew", reason=reason)
        self._said = reason
