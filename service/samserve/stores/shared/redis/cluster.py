"""Commands to the node that owns their key, through failovers and resharding."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import NoReturn, Self

import structlog

from samserve.errors import StoreUnavailable
from samserve.settings import CacheSettings
from samserve.stores.shared.base import Batch, Command, Health, Refused, Reply
from samserve.stores.shared.redis.connection import Redirected, slot_of
from samserve.stores.shared.redis.credentials import Credentials
from samserve.stores.shared.redis.node import Node, NodeUnavailable
from samserve.stores.shared.redis.slots import Address, SlotMap, parse_slots
from samserve.system.addresses import parse_hosts
from samserve.system.background import supervised
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics.store import CacheMetrics

# As many hops as a slot can take while nodes disagree; more would be a loop.
_REDIRECTIONS = 5
# Between two refreshes of the map while something is wrong.
_RETRY_S = 0.2
# Between two rounds over the nodes that are listened to: at first, and when all go on refusing.
_LISTEN_AGAIN_S, _LISTEN_LATER_S = 0.5, 10.0


class ClusterClient:
    """The `CacheServers` that are a cluster; keeps its map of who owns what.

    No call waits for a node that others need: the map is refreshed by a task of its own.
    """

    def __init__(
        self,
        settings: CacheSettings,
        credentials: ReloadableFile[Credentials],
        metrics: CacheMetrics,
    ) -> None:
        self._settings = settings
        self._credentials = credentials
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.cache")
        self._seeds = parse_hosts(settings.nodes)
        self._nodes: dict[Address, Node] = {}
        self.slots = SlotMap()
        """The owners of all slots, as far as they are known now."""
        # The nodes that belong to the cluster, as far as is known.
        self._members = frozenset(self._seeds)
        self.no_map = ""
        """Why no node gave a map, as it was logged last; empty if one did."""
        self._wake = asyncio.Event()
        self._logged_state: tuple[bool, frozenset[str]] | None = None

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes that are known now."""
        return tuple(self._nodes.values())

    def health(self) -> Health:
        """See `CacheServers.health`."""
        nodes = {
            node.address: not node.breaker.open
            # A copy: metrics are read in another thread.
            for address, node in self._nodes.copy().items()
            if address in self._members
        }
        return Health(nodes, bool(self.slots.replicas))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        """Read the map, if the cluster is available, and keep it fresh while the block runs.

        All connections are closed after it.
        """
        failure, restart_s = "the watch over the cluster failed", self._settings.refresh_s
        try:
            await self._refresh()
            async with supervised(self._keep_fresh, failure, restart_s, "samserve.cache"):
                yield self
        finally:
            await asyncio.gather(*(node.aclose() for node in self.nodes))

    async def run(self, key: bytes, batch: Batch) -> list[Reply]:
        """See `CacheServers.run`."""
        slot = slot_of(key)
        owner = self.slots.owners[slot]
        asking = False
        for _ in range(_REDIRECTIONS):
            if owner is None:
                break
            sent = replace(batch, commands=_with_asking(batch.commands)) if asking else batch
            replies = await self._run_on(owner, sent)
            replies = replies[1::2] if asking else replies
            redirected = next((each for each in replies if isinstance(each, Redirected)), None)
            if redirected is None:
                return self._checked(replies)
            host, port = redirected.address
            owner = (owner[0] if host in ("", "?") else host, port)
            asking = redirected.ask
            if not asking:
                self.slots.owners[slot] = owner
                self._wake.set()
        self._wake.set()
        raise _unavailable()

    async def listen(
        self, channel: bytes, begun: Callable[[], None], heard: Callable[[bytes], None]
    ) -> NoReturn:
        """See `CacheServers.listen`."""
        pause_s = _LISTEN_AGAIN_S

        def subscribed() -> None:
            nonlocal pause_s
            pause_s = _LISTEN_AGAIN_S
            begun()

        def ended(reason: str) -> None:
            # The first failures of a row.
            if pause_s == _LISTEN_AGAIN_S:
                self._log.info("listening for deletions anew", reason=reason)

        while True:
            for node in self._available():
                ended(await node.listen(channel, subscribed, heard))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LISTEN_LATER_S)

    def _available(self) -> list[Node]:
        """Return the nodes whose circuit is closed, in random order, those of the settings last."""
        known = [self._nodes[address] for address in self._nodes if address not in self._seeds]
        random.shuffle(known)  # so that not every gateway asks the same one
        seeds = [self._node(address) for address in self._seeds]
        return [node for node in (*known, *seeds) if not node.breaker.open]

    async def _run_on(self, address: Address, batch: Batch) -> list[Reply]:
        try:
            return await self._node(address).run(batch)
        except NodeUnavailable as error:
            self._wake.set()
            self._log.debug("no answer", reason=str(error))
            raise _unavailable() from None

    def _checked(self, replies: list[Reply]) -> list[Reply]:
        if any(isinstance(reply, Refused) and reply.kind == "not now" for reply in replies):
            self._wake.set()
            raise _unavailable()
        return replies

    async def _keep_fresh(self) -> None:
        while True:
            well = not self._unavailable_members() and None not in self.slots.owners
            await self._wait_for_change(self._settings.refresh_s if well else _RETRY_S)
            await self._refresh()

    async def _wait_for_change(self, most_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(most_s):
                await self._wake.wait()
                # Many calls meet the same change; one refresh serves them all.
                await asyncio.sleep(_RETRY_S)
        self._wake.clear()

    async def _refresh(self) -> None:
        """Probe the nodes whose circuit is open, and read the map from one that answers."""
        await asyncio.gather(*(node.probe() for node in self.nodes if node.breaker.open))
        for node in self._available():
            if await self._read_map(node):
                break
        self._log_state_change()

    async def _read_map(self, node: Node) -> bool:
        try:
            (reply,) = await node.run(Batch([("CLUSTER", "SLOTS")]))
        except NodeUnavailable as error:
            self._log.debug("no map", reason=str(error))
            return False
        slots = parse_slots(reply, node.location)
        if slots is not None and slots.addresses:
            await self._adopt(slots)
            self.no_map = ""
            return True
        reason = (reply.text if isinstance(reply, Refused) else str(reply))[:200]
        if reason != self.no_map:
            self._log.warning("no map of the cluster", node=node.address, reason=reason)
        self.no_map = reason
        return False

    async def _adopt(self, slots: SlotMap) -> None:
        self.slots, self._members = slots, slots.addresses
        for address in self._nodes.keys() - self._members - set(self._seeds):
            await self._nodes.pop(address).aclose()
        for address in self._members:
            self._node(address)

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            self._nodes[address] = Node(
                address, lambda: self._credentials.value, self._settings, self._metrics
            )
        return self._nodes[address]

    def _unavailable_members(self) -> frozenset[str]:
        return frozenset(node for node, answers in self.health().nodes.items() if not answers)

    def _log_state_change(self) -> None:
        away = self._unavailable_members()
        covered = None not in self.slots.owners
        if (covered, away) == self._logged_state:
            return
        self._logged_state = (covered, away)
        log = self._log.info if covered and not away else self._log.warning
        log("shared cache", all_slots_covered=covered, nodes_away=sorted(away) or None)


def _with_asking(commands: Iterable[Command]) -> list[Command]:
    """Ask a node for slots that are on their way to it."""
    return [each for command in commands for each in (("ASKING",), command)]


def _unavailable() -> StoreUnavailable:
    return StoreUnavailable("the part of the shared cache that holds this embedding is away")
