"""The port of the servers of the shared tier.

Its adapter is `samserve.cache.shared.redis`, the only part that uses a client library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

Command: TypeAlias = tuple[bytes | bytearray | memoryview | str | int, ...]
"""A command of Redis or Valkey and its arguments."""

Reply: TypeAlias = Any
"""A server's reply: bytes, a number, a list of replies, None, or an `ErrorReply`."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """A server has rejected a command; its ``text`` may repeat what was sent."""

    text: str
    kind: Literal["full", "denied", "try again", "other"] = "other"


@dataclass(frozen=True, slots=True)
class Health:
    """The known state of the servers: ``nodes`` is whether each member responds, by address."""

    nodes: Mapping[str, bool]
    has_replicas: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands that are sent over one connection, one after the other.

    Batches are served round robin between tenants.  ``nbytes`` is the approximate number of bytes
    that are transferred; ``extra_s`` is the time in seconds that the server waits on purpose; with
    ``fresh`` a new connection is used.
    """

    commands: Sequence[Command]
    tenant: str = ""
    nbytes: int = 0
    extra_s: float = 0.0
    fresh: bool = False


class CacheServers(Protocol):
    """Runs commands on the server that owns a key; used from one event loop."""

    async def run(self, key: bytes, batch: Batch) -> list[Reply]:
        """Send commands, all for *key*, to the key's owner.

        Returns their replies, including `ErrorReply`.  Raises `CacheUnavailable` if the owner does
        not respond or is unknown.
        """

    async def subscribe(
        self,
        channel: bytes,
        on_subscribed: Callable[[], None],
        on_message: Callable[[bytes], None],
    ) -> NoReturn:
        """Call *on_message* with each message published on *channel*; survives server failures.

        *on_subscribed* is called after each (re)subscription: messages before it may be lost.
        """

    def health(self) -> Health:
        """Return the known state, without sending requests."""
