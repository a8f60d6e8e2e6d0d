"""The cluster client: sends commands to the owner of their key, through failover and resharding."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import NoReturn, Self

import structlog

from samserve.cache.shared.base import Batch, Command, ErrorReply, Health, Reply
from samserve.cache.shared.redis.connection import Redirect, slot_of
from samserve.cache.shared.redis.credentials import Credentials
from samserve.cache.shared.redis.node import Node, NodeUnavailable
from samserve.cache.shared.redis.slots import Address, SlotMap, parse_slots
from samserve.errors import CacheUnavailable
from samserve.settings import SharedCacheSettings
from samserve.system.addresses import parse_hosts
from samserve.system.background import supervised
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics.cache import CacheMetrics

# The hops that are possible while nodes disagree; more would be a loop.
_MAX_REDIRECTS = 5
# Between two refreshes of the topology during an outage.
_RETRY_S = 0.2
# Backoff between two rounds of subscription attempts over all nodes.
_MIN_BACKOFF_S, _MAX_BACKOFF_S = 0.5, 10.0


class ClusterClient:
    """The `CacheServers` of a cluster; maintains its topology, the owners of all slots.

    A background task refreshes the topology, so no call waits for nodes that it does not need.
    """

    def __init__(
        self,
        settings: SharedCacheSettings,
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
        """The owners of all slots, as far as they are known."""
        # The known members of the cluster.
        self._members = frozenset(self._seeds)
        self.topology_error = ""
        """Why no node returned the topology, as logged last; empty if one did."""
        self._wake = asyncio.Event()
        self._logged_state: tuple[bool, frozenset[str]] | None = None

    @property
    def nodes(self) -> Sequence[Node]:
        """All known nodes."""
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
        """Read the topology, if the cluster is available, and refresh it while the block runs.

        All connections are closed at the end.
        """
        failure = "topology refresh failed"
        restart_s = self._settings.topology_refresh_interval_s
        try:
            await self._refresh_topology()
            async with supervised(self._refresh_forever, failure, restart_s, "samserve.cache"):
                yield self
        finally:
            await asyncio.gather(*(node.aclose() for node in self.nodes))

    async def run(self, key: bytes, batch: Batch) -> list[Reply]:
        """See `CacheServers.run`."""
        slot = slot_of(key)
        owner = self.slots.owners[slot]
        asking = False
        for _ in range(_MAX_REDIRECTS):
            if owner is None:
                break
            sent = replace(batch, commands=_with_asking(batch.commands)) if asking else batch
            replies = await self._run_on(owner, sent)
            replies = replies[1::2] if asking else replies
            redirect = next((each for each in replies if isinstance(each, Redirect)), None)
            if redirect is None:
                return self._checked(replies)
            host, port = redirect.address
            owner = (owner[0] if host in ("", "?") else host, port)
            asking = redirect.ask
            if not asking:
                self.slots.owners[slot] = owner
                self._wake.set()
        self._wake.set()
        raise _unavailable()

    async def subscribe(
        self,
        channel: bytes,
        on_subscribed: Callable[[], None],
        on_message: Callable[[bytes], None],
    ) -> NoReturn:
        """See `CacheServers.subscribe`."""
        backoff_s = _MIN_BACKOFF_S

        def subscribed() -> None:
            nonlocal backoff_s
            backoff_s = _MIN_BACKOFF_S
            on_subscribed()

        def log_end(reason: str) -> None:
            # Only the first of consecutive failures.
            if backoff_s == _MIN_BACKOFF_S:
                self._log.info("deletion subscription restarted", reason=reason)

        while True:
            for node in self._available():
                log_end(await node.subscribe(channel, subscribed, on_message))
            await asyncio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def _available(self) -> list[Node]:
        """Return the nodes with a closed circuit, in random order, those of the settings last."""
        known = [self._nodes[address] for address in self._nodes if address not in self._seeds]
        random.shuffle(known)  # so that gateways use different nodes
        seeds = [self._node(address) for address in self._seeds]
        return [node for node in (*known, *seeds) if not node.breaker.open]

    async def _run_on(self, address: Address, batch: Batch) -> list[Reply]:
        try:
            return await self._node(address).run(batch)
        except NodeUnavailable as error:
            self._wake.set()
            self._log.debug("node did not respond", reason=str(error))
            raise _unavailable() from None

    def _checked(self, replies: list[Reply]) -> list[Reply]:
        if any(isinstance(reply, ErrorReply) and reply.kind == "try again" for reply in replies):
            self._wake.set()
            raise _unavailable()
        return replies

    async def _refresh_forever(self) -> None:
        while True:
            healthy = not self._unavailable_members() and None not in self.slots.owners
            await self._wait_for_change(
                self._settings.topology_refresh_interval_s if healthy else _RETRY_S
            )
            await self._refresh_topology()

    async def _wait_for_change(self, timeout_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
                # Many calls notice the same change; one refresh serves them all.
                await asyncio.sleep(_RETRY_S)
        self._wake.clear()

    async def _refresh_topology(self) -> None:
        """Probe the nodes with an open circuit, and read the topology from one that responds."""
        await asyncio.gather(*(node.probe() for node in self.nodes if node.breaker.open))
        for node in self._available():
            if await self._read_topology(node):
                break
        self._log_state_change()

    async def _read_topology(self, node: Node) -> bool:
        try:
            (reply,) = await node.run(Batch([("CLUSTER", "SLOTS")]))
        except NodeUnavailable as error:
            self._log.debug("cluster topology unavailable", reason=str(error))
            return False
        slots = parse_slots(reply, node.location)
        if slots is not None and slots.addresses:
            await self._apply_topology(slots)
            self.topology_error = ""
            return True
        reason = (reply.text if isinstance(reply, ErrorReply) else str(reply))[:200]
        if reason != self.topology_error:
            self._log.warning("cluster topology unavailable", node=node.address, reason=reason)
        self.topology_error = reason
        return False

    async def _apply_topology(self, slots: SlotMap) -> None:
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
        return frozenset(node for node, responds in self.health().nodes.items() if not responds)

    def _log_state_change(self) -> None:
        unavailable = self._unavailable_members()
        covered = None not in self.slots.owners
        if (covered, unavailable) == self._logged_state:
            return
        self._logged_state = (covered, unavailable)
        log = self._log.info if covered and not unavailable else self._log.warning
        log(
            "shared cache state changed",
            all_slots_covered=covered,
            unavailable_nodes=sorted(unavailable) or None,
        )


def _with_asking(commands: Iterable[Command]) -> list[Command]:
    """Prefix each command with ASKING, for a slot that is being moved to the node."""
    return [each for command in commands for each in (("ASKING",), command)]


def _unavailable() -> CacheUnavailable:
    return CacheUnavailable("the node of the shared cache that owns this embedding is unavailable")
