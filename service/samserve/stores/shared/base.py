"""The port to the servers of the shared cache.

Its adapter is `samserve.stores.shared.redis`, the only part that knows a client library.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

Command: TypeAlias = tuple[bytes | str | int, ...]
"""A command of Redis or Valkey and its arguments."""

Reply: TypeAlias = Any
"""What a server answers: bytes, a number, a list of such, None, or a `Refused`."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A server has refused a command: ``text`` is its own and may repeat what it was sent."""

    text: str
    kind: Literal["full", "denied", "not now", "other"] = "other"


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of the servers: whether each member answers, by its address."""

    nodes: Mapping[str, bool]
    has_replicas: bool


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands that go over one connection, one after the other.

    Batches of tenants take turns.  ``nbytes`` is what goes over the wire, about; ``extra_s`` is
    time that the server takes on purpose, in seconds; with ``fresh`` the connection is a new one.
    """

    commands: Sequence[Command]
    tenant: str = ""
    nbytes: int = 0
    extra_s: float = 0.0
    fresh: bool = False


class CacheServers(Protocol):
    """Runs commands on the server that owns a key; used from one event loop."""

    async def run(self, key: bytes, batch: Batch) -> list[Reply]:
        """Send commands, all about *key*, to the key's owner.

        Returns their replies, `Refused` among them.  Raises `StoreUnavailable` if the owner does
        not answer or is not known.
        """

    async def listen(
        self, channel: bytes, begun: Callable[[], None], heard: Callable[[bytes], None]
    ) -> NoReturn:
        """Call *heard* with each message published on *channel*, through failures of servers.

        *begun* is called whenever messages may have been missed, and no more are from then on.
        """

    def health(self) -> Health:
        """Return what is known now, without asking."""
