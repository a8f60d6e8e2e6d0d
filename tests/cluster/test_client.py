"""The cluster client: connection limits, redirects, cancellation, and invalid responses."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import Any

import pytest
from samserve.cache.shared.base import Batch
from samserve.cache.shared.redis import cluster as client_module
from samserve.cache.shared.redis.connection import Connection
from samserve.cache.shared.redis.node import Node, NodeUnavailable
from samserve.errors import CacheUnavailable
from samserve.types import EmbeddingKey
from structlog.testing import capture_logs

from harness.cluster.cluster import Cluster
from harness.cluster.node import Node as ServerNode
from harness.cluster.ports import Ports
from tests.cluster.caches import SLOT, GatewayCache, key, node_client, open_cache
from tests.support.tcp import relay, replying_server
from tests.support.waiting import until


def connections(cluster: Cluster) -> list[int]:
    """Return the number of connections of gateways to each node."""
    return [
        sum(client["name"] == "samserve" for client in cluster.client(node).client_list())
        for node in cluster.nodes
    ]


def assert_released(gateway: GatewayCache) -> None:
    """Check that all permits have been released."""
    for node in gateway.client.nodes:
        assert node._permits._free == 8
        assert node._budget._free == 64 << 20
        assert not node._budget.waiting
    assert not gateway.cache._markers


class LoopClock:
    """Moves the clock of the running event loop forward, by ``added_s`` in total."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.added_s = 0.0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + self.added_s)


async def test_calls_beyond_the_connection_limit_wait(cluster: Cluster, nodes: str) -> None:
    limits = {"max_connections_per_node": 1, "max_in_flight_bytes": SLOT}
    async with open_cache(nodes, **limits) as one, open_cache(nodes, capacity=32 * SLOT) as other:
        keys = [key(f"{n:064x}") for n in range(20)]
        await asyncio.gather(*(other.put(each, float(n)) for n, each in enumerate(keys)))
        seen: list[int] = []

        async def read(each: int) -> float | None:
            value = await one.get(keys[each])
            seen.append(max(connections(cluster)))
            return value

        for start in range(0, 20, 10):
            numbers = range(start, start + 10)
            assert await asyncio.gather(*map(read, numbers)) == [float(n) for n in numbers]
        # One for commands and one for the subscription, and those of the other gateway.
        assert max(seen) <= 1 + 1 + 8 + 1
        assert all(len(node._idle) <= 1 for node in one.client.nodes)


async def test_cancellation_at_any_moment_releases_all_permits(nodes: str) -> None:
    rng = random.Random(7)
    keys = [key(f"{n:064x}") for n in range(24)]
    async with open_cache(nodes, capacity=8 * SLOT) as one:
        for number, each in enumerate(keys):
            await one.put(each, float(number))
        for _ in range(30):
            tasks = [asyncio.create_task(random_call(one, keys, rng)) for _ in range(6)]
            await asyncio.sleep(rng.random() * 0.006)
            for task in rng.sample(tasks, 4):
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results

        assert_released(one)
        for number, each in enumerate(keys):
            await one.put(each, float(number))
        async with open_cache(nodes, capacity=32 * SLOT) as fresh:
            assert [await fresh.get(each) for each in keys] == [float(n) for n in range(24)]


async def random_call(gateway: GatewayCache, keys: list[EmbeddingKey], rng: random.Random) -> None:
    """Read, write or delete a random key; a read must return the value of its key."""
    number = rng.randrange(len(keys))
    kind = rng.random()
    if kind < 0.6:
        assert await gateway.get(keys[number]) in (float(number), None)
    elif kind < 0.9:
        await gateway.put(keys[number], float(number))
    else:
        await gateway.cache.delete(keys[number])


async def test_connections_closed_by_the_node_are_reopened(cluster: Cluster, nodes: str) -> None:
    async with open_cache(nodes) as one, open_cache(nodes) as other:
        await one.put(key("a"), 2.0)
        for node in cluster.nodes:
            cluster.client(node).client_kill_filter(_type="normal", skipme=True)

        assert await other.get(key("a")) == 2.0
        assert (await one.put(key("b"))).shared
        assert one.count("shared_errors", kind="unavailable") == 0


async def test_a_migrating_slot_is_found_on_either_node(cluster: Cluster, nodes: str) -> None:
    async with open_cache(nodes) as one, open_cache(nodes, capacity=64 * SLOT) as other:
        await one.put(key("a"), 1.0)
        name = one.shared.name(key("a")).decode()
        source = cluster.owner_of(name)
        target = next(node for node in cluster.masters if node is not source)
        move = cluster.slot_move(cluster.slot_of(name), target)
        await asyncio.to_thread(move.begin)
        try:
            # The key is still at the source.
            assert await other.get(key("a")) == 1.0
            await asyncio.to_thread(move.move_keys)
            # The key has been moved: the source replies with ASK.
            async with open_cache(nodes) as third:
                assert await third.get(key("a")) == 1.0
                assert await third.cache.delete(key("a"))
                assert await third.get(key("a")) is None
                # New keys are written to the target.
                assert (await third.put(key("a"), 3.0)).shared
                async with third.cache.lease(key("a"), durable=True) as embedding:
                    assert embedding.shared
        finally:
            await asyncio.to_thread(move.finish)
        async with open_cache(nodes) as fourth:
            assert await fourth.get(key("a")) == 3.0
        await asyncio.to_thread(cluster.move_slots, [cluster.slot_of(name)], source)
        assert one.count("shared_errors", kind="unavailable") == 0


async def test_one_available_seed_is_enough(cluster: Cluster) -> None:
    with Ports() as ports:
        dead = [f"127.0.0.1:{port}" for port in ports.reserve(3)]
        async with open_cache(",".join([*dead, cluster.addresses[0]])) as one:
            assert (await one.put(key("a"))).shared
            # Seeds that are no members cause no wait, and are not reported.
            assert set(one.client.health().nodes) == set(cluster.addresses)


async def test_a_cluster_that_starts_later_is_discovered(cluster: Cluster) -> None:
    with Ports() as ports:
        (port,) = ports.reserve(1)
        async with open_cache(f"127.0.0.1:{port}") as one:
            with pytest.raises(CacheUnavailable):
                await one.get(key("a"))
            async with relay(cluster.nodes[0].port, port):

                async def shared() -> bool:
                    return (await one.put(key("a"))).shared

                await until(shared)
            assert set(one.client.health().nodes) == set(cluster.addresses)


async def test_a_new_node_is_used_once_it_owns_slots(disposable_cluster: Cluster) -> None:
    cluster = disposable_cluster
    async with open_cache(",".join(cluster.addresses), topology_refresh_interval_s=600) as one:
        await one.put(key("a"), 4.0)
        name = one.shared.name(key("a")).decode()
        owner = cluster.owner_of(name)
        added = await asyncio.to_thread(cluster.add_node, owner)
        assert added.announced not in one.client.health().nodes
        await asyncio.to_thread(cluster.hand_over, added)
        async with open_cache(",".join(cluster.addresses[:3])) as other:
            assert await other.get(key("a")) == 4.0
        assert await one.cache.delete(key("a"))
        assert cluster.owner_of(name) is added
        assert one.count("shared_errors", kind="unavailable") == 0


async def test_a_burst_of_reads_opens_no_circuit_and_starves_no_tenant(
    cluster: Cluster, nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, timeout_s = LoopClock(monkeypatch), 20.0
    limits = {
        "timeout_s": timeout_s,
        "max_connections_per_node": 2,
        "topology_refresh_interval_s": 1e6,
    }
    async with open_cache(nodes, capacity=32 * SLOT) as writer:
        owner = cluster.owner_of(writer.shared.name(key("0")))
        many, few = (of_node(cluster, writer, owner, tenant, n) for tenant, n in MANY_AND_FEW)
        for each in (*many, *few):
            await writer.put(each)
    async with open_cache(nodes, capacity=32 * SLOT, **limits) as reader:
        # The subscription would time out when the clock moves forward.
        await reader.subscription.aclose()
        order: list[str] = []

        exchange = Connection.exchange

        async def slowly(*args: Any) -> Any:
            await asyncio.sleep(0)
            clock.added_s += 0.12 * timeout_s
            return await exchange(*args)

        async def read(each: EmbeddingKey) -> float | None:
            value = await reader.get(each)
            order.append(each.tenant)
            return value

        monkeypatch.setattr(Connection, "exchange", slowly)
        reads = await asyncio.gather(*(read(each) for each in (*many, *few)))

        # The last reads have waited for a connection longer than the timeout of a node.
        assert clock.added_s > 1.5 * timeout_s
        assert reads == [1.0] * len(reads)
        assert reader.count("shared_errors", kind="unavailable") == 0
        assert all(reader.client.health().nodes.values())
        # The tenant with few reads came last, and did not wait for all reads of the other.
        assert order.index("few") < len(many) // 2


MANY_AND_FEW = (("many", 14), ("few", 2))


def of_node(
    cluster: Cluster, gateway: GatewayCache, node: ServerNode, tenant: str, count: int
) -> list[EmbeddingKey]:
    """Return *count* keys of a tenant that *node* owns."""
    keys = (key(f"{number:064x}", tenant) for number in itertools.count())
    owned = (each for each in keys if cluster.owner_of(gateway.shared.name(each)) is node)
    return list(itertools.islice(owned, count))


async def test_unconfirmed_durable_calls_use_at_most_half_of_the_connections(
    disposable_masters: Cluster,
) -> None:
    cluster, nodes = disposable_masters, ",".join(disposable_masters.addresses)
    async with (
        open_cache(nodes, capacity=32 * SLOT, durability_timeout_s=600) as one,
        open_cache(nodes, capacity=32 * SLOT, durability_timeout_s=0.05) as impatient,
    ):
        owner = cluster.owner_of(one.shared.name(key("0")))
        # Twice as many as there are connections.
        keys = of_node(cluster, one, owner, "default", 16)
        for each in keys:
            await one.put(each)
        (node,) = (node for node in one.client.nodes if node.address == owner.announced)

        async def durable(gateway: GatewayCache, each: EmbeddingKey) -> None:
            async with gateway.cache.lease(each, durable=True):
                pass

        waiting = [asyncio.create_task(durable(one, each)) for each in keys]
        # Half of the connections wait for a confirmation that never arrives.
        await until(lambda: node._permits._free == 4)
        for _ in range(10):
            assert (await one.put(keys[0])).shared
            assert (await one.put(key("another"))).shared
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

        for each in keys:
            await impatient.get(each)
        errors = await asyncio.gather(
            *(durable(impatient, each) for each in keys), return_exceptions=True
        )
        assert all(isinstance(each, CacheUnavailable) for each in errors)
        assert all("confirmed" in str(each) for each in errors)
        assert impatient.client.health().nodes[owner.announced]


async def ping(node: Node) -> bool:
    try:
        return bool(await node.run(Batch([("PING",)])))
    except NodeUnavailable:
        return False


async def test_calls_that_wait_for_a_hanging_node_fail_without_an_attempt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock(monkeypatch)
    async with replying_server(0) as (port, opened):
        node = node_client(port, max_connections_per_node=1)
        waiting = asyncio.gather(*(ping(node) for _ in range(20)))
        await until(lambda: opened)
        clock.added_s += 20.0
        assert await waiting == [False] * 20
        assert node.breaker.open
        assert len(opened) == 1
        await node.aclose()


async def test_a_slow_node_that_responds_to_other_calls_stays_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock(monkeypatch)
    async with replying_server(1) as (port, opened):
        node = node_client(port, max_connections_per_node=2)
        assert await ping(node)
        # The first connection still gets replies, the second does not.
        kept = node._idle.pop()
        slow = asyncio.create_task(ping(node))
        await until(lambda: len(opened) == 2)
        node._idle.append(kept)
        assert await ping(node)
        assert not slow.done()
        clock.added_s += 20.0

        assert not await slow
        assert not node.breaker.open
        assert await ping(node)
        await node.aclose()


@pytest.mark.parametrize(
    "reply",
    [
        b"-MOVED nonsense\r\n",
        b"-ASK\r\n",
        b"-MOVED 1 noport\r\n",
        b":7\r\n",
        b"*0\r\n",
        b"*1\r\n*1\r\n:1\r\n",
        b"$3\r\nabc\r\n",
        b"*3\r\n:1\r\n:2\r\n:3\r\n",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b"*-1\r\n",
        b"*99999\r\n",
    ],
)
async def test_an_invalid_reply_is_an_outage(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_RETRY_S", 0.01)
    with capture_logs() as log:
        await assert_outage(reply)
    assert [line for line in log if line["log_level"] == "error"] == []


async def assert_outage(reply: bytes) -> None:
    async with (
        replying_server(1000, reply * 6) as (port, opened),
        # Some of these are incomplete replies, for which the timeout must pass.
        open_cache(
            f"127.0.0.1:{port}",
            timeout_s=0.05,
            durability_timeout_s=0.05,
            topology_refresh_interval_s=0.02,
        ) as one,
    ):
        # A valid topology, so that all commands are sent to this server.
        one.client.slots.owners[:] = [("127.0.0.1", port)] * len(one.client.slots.owners)
        with pytest.raises(CacheUnavailable):
            await one.get(key("a"))
        assert not (await one.put(key("a"))).shared
        with pytest.raises(CacheUnavailable):
            await one.cache.delete(key("a"))
        with pytest.raises(CacheUnavailable):
            await one.shared.renew(key("a"), 5, durable=True)
        # The topology is requested again.
        before = len(opened)
        await until(lambda: len(opened) > before + 1)
