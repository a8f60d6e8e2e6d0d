"""A network partition with a gateway and the old master of a key, while the key is deleted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from samserve.cache.shared.redis.node import Node as GatewayNode
from samserve.errors import CacheUnavailable

from harness.cluster.bus import Bus
from harness.cluster.cluster import Cluster
from harness.cluster.node import HOST, Node
from harness.cluster.ports import Ports
from tests.cluster.caches import GatewayCache, key, open_cache
from tests.support.clock import Clock
from tests.support.waiting import until

pytestmark = pytest.mark.slow

A = key("a" * 64)


@pytest.fixture
def bus() -> Iterator[Bus]:
    with Bus() as between:
        yield between


async def cut_off_node(gateway: GatewayCache, node: Node, closed_port: int) -> None:
    """Make a gateway connect to a closed port instead of a node."""
    address = (HOST, node.announced_port)
    known = gateway.client._nodes.pop(address)
    gateway.client._nodes[address] = GatewayNode(
        (HOST, closed_port), known._credentials.newest, known._settings, gateway.metrics.cache
    )
    await known.aclose()


async def reconnect(gateway: GatewayCache, nodes: Iterable[Node]) -> None:
    """Undo `cut_off_node`."""
    for node in nodes:
        await gateway.client._nodes.pop((HOST, node.announced_port)).aclose()


def reports_state(node: Node, state: str) -> bool:
    return f"cluster_state:{state}".encode() in node.command("CLUSTER", "INFO")


async def test_in_a_partition_a_deleted_embedding_is_used_for_stale_if_error_s_at_most(
    bus: Bus,
) -> None:
    clock = Clock()
    # Also with masters that serve reads during a partition.
    options = {"cluster-allow-reads-when-down": "yes"}
    with Ports() as ports, Cluster(options=options, bus=bus) as cluster:
        nodes, (closed_port,) = ",".join(cluster.addresses), ports.reserve(1)
        async with (
            open_cache(nodes, revalidate_interval_s=1, stale_if_error_s=10, now=clock) as cut_off,
            open_cache(nodes) as other,
        ):
            master = cluster.owner_of(other.shared.name(A))
            (replica,) = cluster.replicas_of(master)
            await cut_off.put(A)
            assert await other.get(A) == 1.0
            # Its existing connection would still receive the deletion.
            await cut_off.subscription.aclose()
            others = [node for node in cluster.nodes if node is not master]
            for node in others:
                await cut_off_node(cut_off, node, closed_port)
            await cut_off_node(other, master, closed_port)
            bus.partition([master])

            async def deleted() -> bool:
                try:
                    return await other.cache.delete(A)
                except CacheUnavailable:
                    return False

            # The deletion succeeds once the replica has taken over.
            await until(lambda: reports_state(replica, "ok") and replica in cluster.masters)
            await until(deleted)
            assert await other.get(A) is None

            # The old master confirms nothing once it has noticed the partition.
            await until(lambda: reports_state(master, "fail"))
            with pytest.raises(CacheUnavailable):
                await cut_off.shared.check(A)
            clock.now += 1.1
            assert await cut_off.get(A) == 1.0
            clock.now += 10
            with pytest.raises(CacheUnavailable, match="whether the embedding was deleted"):
                await cut_off.get(A)
            # A gateway in that partition with an empty local tier cannot read the value either.
            async with open_cache(master.announced) as late:
                for node in others:
                    await cut_off_node(late, node, closed_port)
                with pytest.raises(CacheUnavailable):
                    await late.get(A)
            # A call with the image may use the embedding.
            async with cut_off.cache.lease(A, image_sent=True) as embedding:
                assert not embedding.shared
            assert await cut_off.get(A) == 1.0

            bus.heal()
            await reconnect(cut_off, others)
            clock.now += 1.1

            async def not_found() -> bool:
                try:
                    return await cut_off.get(A) is None
                except CacheUnavailable:
                    return False

            await until(not_found)
            assert cut_off.local.stats().entries == 0
