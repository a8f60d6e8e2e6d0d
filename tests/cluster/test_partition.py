"""A gateway that is cut off together with the master of a key, while others delete it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from samserve.errors import StoreUnavailable
from samserve.stores.shared.redis.node import Node as GatewayNode

from harness.cluster.bus import Bus
from harness.cluster.cluster import Cluster
from harness.cluster.node import HOST, Node
from harness.cluster.ports import Ports
from tests.cluster.stores import Gateway, key, store_over
from tests.support.clock import Clock
from tests.support.waiting import until

pytestmark = pytest.mark.slow

A = key("a" * 64)


@pytest.fixture
def bus() -> Iterator[Bus]:
    with Bus() as between:
        yield between


async def keep_from(gateway: Gateway, node: Node, nowhere: int) -> None:
    """Have a gateway reach a closed port in the place of a node."""
    address = (HOST, node.announced_port)
    known = gateway.client._nodes.pop(address)
    gateway.client._nodes[address] = GatewayNode(
        (HOST, nowhere), known._credentials.newest, known._settings, gateway.metrics.cache
    )
    await known.aclose()


async def let_reach(gateway: Gateway, nodes: Iterable[Node]) -> None:
    """Undo `keep_from`."""
    for node in nodes:
        await gateway.client._nodes.pop((HOST, node.announced_port)).aclose()


def says(node: Node, state: str) -> bool:
    return f"cluster_state:{state}".encode() in node.command("CLUSTER", "INFO")


async def test_what_others_delete_is_used_no_longer_than_it_goes_unconfirmed(bus: Bus) -> None:
    clock = Clock()
    # Even of a master that answers reads for as long as it is cut off.
    options = {"cluster-allow-reads-when-down": "yes"}
    with Ports() as held, Cluster(options=options, bus=bus) as cluster:
        nodes, (nowhere,) = ",".join(cluster.addresses), held.take(1)
        async with (
            store_over(nodes, check_s=1, unconfirmed_s=10, now=clock) as cut_off,
            store_over(nodes) as other,
        ):
            master = cluster.owner_of(other.cache.name(A))
            (replica,) = cluster.replicas_of(master)
            await cut_off.put(A)
            assert await other.get(A) == 1.0
            # It would tell what is deleted, on a connection from before.
            await cut_off.listening.aclose()
            others = [node for node in cluster.nodes if node is not master]
            for node in others:
                await keep_from(cut_off, node, nowhere)
            await keep_from(other, master, nowhere)
            bus.cut_off([master])

            async def deleted() -> bool:
                try:
                    return await other.store.delete(A)
                except StoreUnavailable:
                    return False

            # As soon as the replica has taken over.
            await until(lambda: says(replica, "ok") and replica in cluster.masters)
            await until(deleted)
            assert await other.get(A) is None

            # The old master does not confirm it once it knows that it is cut off.
            await until(lambda: says(master, "fail"))
            with pytest.raises(StoreUnavailable):
                await cut_off.cache.check(A)
            clock.now += 1.1
            assert await cut_off.get(A) == 1.0
            clock.now += 10
            with pytest.raises(StoreUnavailable, match="whether the embedding was deleted"):
                await cut_off.get(A)
            # Nor does a gateway there that has nothing in memory read what was deleted.
            async with store_over(master.announced) as late:
                for node in others:
                    await keep_from(late, node, nowhere)
                with pytest.raises(StoreUnavailable):
                    await late.get(A)
            # Who has the image may use what was made of it.
            async with cut_off.store.lease(A, image_sent=True) as embedding:
                assert not embedding.shared
            assert await cut_off.get(A) == 1.0

            bus.heal()
            await let_reach(cut_off, others)
            clock.now += 1.1

            async def forgotten() -> bool:
                try:
                    return await cut_off.get(A) is None
                except StoreUnavailable:
                    return False

            await until(forgotten)
            assert cut_off.memory.stats().entries == 0
