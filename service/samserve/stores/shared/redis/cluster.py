"""Commands to the node that owns their key, through failovers and resharding."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import structlog
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)

from samserve.errors import StoreUnavailable
from samserve.settings import CacheSettings
from samserve.stores.shared.redis.credentials import Access
from samserve.stores.shared.redis.node import Command, Node, NodeUnavailable, Reply
from samserve.stores.shared.redis.slots import Address, SlotMap, parse_slots
from samserve.system.addresses import parse_hosts
from samserve.system.reloading import Watched
from samserve.telemetry.metrics.store import CacheMetrics

# As many hops as a slot can take while nodes disagree; more would be a loop.
_REDIRECTIONS = 5
# Between two looks at a cluster where something is wrong.
_SOON_S = 0.2
# A slot without an owner, or one that is about to change.
_NOT_NOW = (ClusterDownError, ReadOnlyError, TryAgainError)


class ClusterClient:
    """Knows who owns what, and keeps looking; used from one event loop.

    Nothing here waits for a node that others do not need: the map is kept by a task of its own.
    """

    def __init__(
        self, settings: CacheSettings, access: Watched[Access], metrics: CacheMetrics
    ) -> None:
        self._settings = settings
        self._access = access
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.cache")
        self._seeds = parse_hosts(settings.nodes)
        self._nodes: dict[Address, Node] = {}
        self._slots = SlotMap()
        # Who belongs to it, as far as is known.
        self._members = frozenset(self._seeds)
        # Why a node gave no map, as it was said last.
        self._no_map = ""
        self._wake = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._said: tuple[bool, frozenset[str]] | None = None

    @property
    def has_replicas(self) -> bool:
        """Whether any replica is known."""
        return bool(self._slots.replicas)

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes that are known now."""
        return tuple(self._nodes.values())

    def health(self) -> dict[str, bool]:
        """Tell of each member whether it answers, by its address."""
        return {
            node.address: not node.breaker.open
            for address, node in self._nodes.items()
            if address in self._members
        }

    async def open(self) -> None:
        """Look at the cluster once, which may be away, and keep looking."""
        await self._look()
        self._keep_watching()

    async def aclose(self) -> None:
        """Stop looking and close all connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await asyncio.gather(*(node.aclose() for node in self.nodes))

    async def run(
        self,
        key: bytes,
        commands: Sequence[Command],
        *,
        tenant: str = "",
        nbytes: int = 0,
        extra_s: float = 0.0,
        fresh: bool = False,
    ) -> list[Reply]:
        """Send *commands*, all about *key*, over one connection to the key's owner.

        Gives their replies, among them errors of other kinds than those of a cluster.  Raises
        `StoreUnavailable` if the owner does not answer or is not known; see `Node.run`.
        """
        how = {"tenant": tenant, "nbytes": nbytes, "extra_s": extra_s, "fresh": fresh}
        slot = key_slot(key)
        owner = self._slots.owners[slot]
        asking = False
        for _ in range(_REDIRECTIONS):
            if owner is None:
                break
            sent = _with_asking(commands) if asking else commands
            replies = await self._run_on(owner, sent, **how)
            replies = replies[1::2] if asking else replies
            redirection = _first_redirection(replies)
            if redirection is None:
                return self._checked(replies)
            unnamed = redirection.host in ("", "?")
            owner = (owner[0] if unnamed else redirection.host, redirection.port)
            asking = not isinstance(redirection, MovedError)
            if not asking:
                self._slots.assign(slot, owner)
                self._wake.set()
        self._wake.set()
        raise _unavailable()

    def by_health(self) -> list[Node]:
        """Give the nodes that are not left alone, in any order, those of the settings last."""
        known = [self._nodes[address] for address in self._nodes if address not in self._seeds]
        random.shuffle(known)  # so that not every gateway asks the same one
        seeds = [self._node(address) for address in self._seeds]
        return [node for node in (*known, *seeds) if not node.breaker.open]

    async def _run_on(
        self, address: Address, commands: Sequence[Command], **how: Any
    ) -> list[Reply]:
        try:
            return await self._node(address).run(commands, **how)
        except NodeUnavailable as error:
            self._wake.set()
            self._log.debug("no answer", reason=str(error))
            raise _unavailable() from None

    def _checked(self, replies: list[Reply]) -> list[Reply]:
        if any(_not_now(reply) for reply in replies):
            self._wake.set()
            raise _unavailable()
        return replies

    async def _watch(self) -> None:
        while True:
            well = not self._away() and None not in self._slots.owners
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.refresh_s if well else _SOON_S):
                    await self._wake.wait()
                    # Many calls meet the same change; one look serves them all.
                    await asyncio.sleep(_SOON_S)
            self._wake.clear()
            await self._look()

    async def _look(self) -> None:
        """Ask nodes that are left alone whether they are back, and one for the map."""
        await asyncio.gather(*(node.probe() for node in self.nodes if node.breaker.open))
        for node in self.by_health():
            address = (node.host, node.port)
            try:
                replies = await node.run([("CLUSTER", "SLOTS")])
            except NodeUnavailable as error:
                self._log.debug("no map", reason=str(error))
                continue
            slots = parse_slots(replies[0], address)
            if slots is not None and slots.addresses:
                await self._use(slots)
                self._no_map = ""
                break
            reason = str(replies[0])[:200]
            if reason != self._no_map:
                self._log.warning("no map of the cluster", node=node.address, reason=reason)
            self._no_map = reason
        self._say()

    async def _use(self, slots: SlotMap) -> None:
        self._slots, self._members = slots, slots.addresses
        for address in self._nodes.keys() - self._members - set(self._seeds):
            await self._nodes.pop(address).aclose()
        for address in self._members:
            self._node(address)

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            self._nodes[address] = Node(
                *address, lambda: self._access.value, self._settings, self._metrics
            )
        return self._nodes[address]

    def _away(self) -> list[Node]:
        """Give the members of the cluster that are left alone."""
        return [
            node
            for address, node in self._nodes.items()
            if node.breaker.open and address in self._members
        ]

    def _keep_watching(self) -> None:
        self._watching = asyncio.create_task(self._watch())
        self._watching.add_done_callback(self._go_on)

    def _go_on(self, watching: asyncio.Task[None]) -> None:
        """Begin again after what nobody has foreseen."""
        if watching.cancelled() or watching.exception() is None:
            return
        self._log.error("the watch over the cluster failed", exc_info=watching.exception())
        asyncio.get_running_loop().call_later(self._settings.refresh_s, self._keep_watching)

    def _say(self) -> None:
        """Log what has changed."""
        away = frozenset(node.address for node in self._away())
        covered = None not in self._slots.owners
        if (covered, away) == self._said:
            return
        self._said = (covered, away)
        say = self._log.info if covered and not away else self._log.warning
        say("shared cache", all_slots_covered=covered, nodes_away=sorted(away) or None)


def _with_asking(commands: Iterable[Command]) -> list[Command]:
    """Ask a node for slots that are on their way to it."""
    return [each for command in commands for each in (("ASKING",), command)]


def _first_redirection(replies: Iterable[Reply]) -> AskError | None:
    # `MovedError` is one, too.
    return next((reply for reply in replies if isinstance(reply, AskError)), None)


def _not_now(reply: Reply) -> bool:
    # A script that may not write says so in words of its own.
    down = isinstance(reply, ResponseError) and "cluster is down" in str(reply)
    return down or isinstance(reply, _NOT_NOW)


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("the part of the shared cache that holds this embedding is away")
