"""The way to the node that owns a key: bounded, redirected, and not broken by who gives up."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from typing import Any

import pytest
from samserve.errors import StoreUnavailable
from samserve.stores.shared.base import Batch
from samserve.stores.shared.redis import cluster as client_module
from samserve.stores.shared.redis.connection import Connection
from samserve.stores.shared.redis.node import Node, NodeUnavailable
from samserve.types import EmbeddingKey
from structlog.testing import capture_logs

from harness.cluster.cluster import Cluster
from harness.cluster.node import Node as ServerNode
from harness.cluster.ports import Ports
from tests.cluster.relays import answering, relay
from tests.cluster.stores import SLOT, Gateway, key, node_at, store_over
from tests.support.waiting import until


def connections(cluster: Cluster) -> list[int]:
    """How many connections gateways have to each node."""
    return [
        sum(client["name"] == "samserve" for client in cluster.client(node).client_list())
        for node in cluster.nodes
    ]


def at_rest(gateway: Gateway) -> None:
    """See that nothing is held any more."""
    for node in gateway.client.nodes:
        assert node._permits._free == 8
        assert node._budget._free == 64 << 20
        assert not node._budget.waiting
    assert not gateway.store._markers


class LoopClock:
    """Puts the clock of the running event loop forward, by ``added_s`` in all."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.added_s = 0.0
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: time.monotonic() + self.added_s)


async def test_more_calls_than_connections_wait_for_their_turn(
    cluster: Cluster, nodes: str
) -> None:
    bounds = {"connections": 1, "in_flight_bytes": SLOT}
    async with store_over(nodes, **bounds) as one, store_over(nodes, capacity=32 * SLOT) as other:
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
        # One for commands and one that listens, and those of the other store.
        assert max(seen) <= 1 + 1 + 8 + 1
        assert all(len(node._idle) <= 1 for node in one.client.nodes)


async def test_whoever_gives_up_at_any_moment_leaves_nothing_behind(nodes: str) -> None:
    rng = random.Random(7)
    keys = [key(f"{n:064x}") for n in range(24)]
    async with store_over(nodes, capacity=8 * SLOT) as one:
        for number, each in enumerate(keys):
            await one.put(each, float(number))
        for _ in range(30):
            tasks = [asyncio.create_task(use(one, keys, rng)) for _ in range(6)]
            await asyncio.sleep(rng.random() * 0.006)
            for task in rng.sample(tasks, 4):
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results

        at_rest(one)
        for number, each in enumerate(keys):
            await one.put(each, float(number))
        async with store_over(nodes, capacity=32 * SLOT) as fresh:
            assert [await fresh.get(each) for each in keys] == [float(n) for n in range(24)]


async def use(gateway: Gateway, keys: list[EmbeddingKey], rng: random.Random) -> None:
    """Read, write or delete any of them; what is read is what was written there."""
    number = rng.randrange(len(keys))
    kind = rng.random()
    if kind < 0.6:
        assert await gateway.get(keys[number]) in (float(number), None)
    elif kind < 0.9:
        await gateway.put(keys[number], float(number))
    else:
        await gateway.store.delete(keys[number])


async def test_connections_that_the_node_has_closed_are_made_anew(
    cluster: Cluster, nodes: str
) -> None:
    async with store_over(nodes) as one, store_over(nodes) as other:
        await one.put(key("a"), 2.0)
        for node in cluster.nodes:
            cluster.client(node).client_kill_filter(_type="normal", skipme=True)

        assert await other.get(key("a")) == 2.0
        assert (await one.put(key("b"))).shared
        assert one.count("failures", kind="unavailable") == 0


async def test_a_slot_on_its_way_is_found_on_either_side(cluster: Cluster, nodes: str) -> None:
    async with store_over(nodes) as one, store_over(nodes, capacity=64 * SLOT) as other:
        await one.put(key("a"), 1.0)
        name = one.cache.name(key("a")).decode()
        source = cluster.owner_of(name)
        target = next(node for node in cluster.masters if node is not source)
        move = cluster.slot_move(cluster.slot_of(name), target)
        await asyncio.to_thread(move.begin)
        try:
            # Still at the source.
            assert await other.get(key("a")) == 1.0
            await asyncio.to_thread(move.move_keys)
            # Gone ahead: the source asks to ask the target.
            async with store_over(nodes) as third:
                assert await third.get(key("a")) == 1.0
                assert await third.store.delete(key("a"))
                assert await third.get(key("a")) is None
                # Written at the target, where the slot will be.
                assert (await third.put(key("a"), 3.0)).shared
                async with third.store.lease(key("a"), durable=True) as embedding:
                    assert embedding.shared
        finally:
            await asyncio.to_thread(move.finish)
        async with store_over(nodes) as fourth:
            assert await fourth.get(key("a")) == 3.0
        await asyncio.to_thread(cluster.move_slots, [cluster.slot_of(name)], source)
        assert one.count("failures", kind="unavailable") == 0


async def test_one_living_seed_is_enough(cluster: Cluster) -> None:
    with Ports() as held:
        dead = [f"127.0.0.1:{port}" for port in held.take(3)]
        async with store_over(",".join([*dead, cluster.addresses[0]])) as one:
            assert (await one.put(key("a"))).shared
            # Seeds that are no members are not waited for, nor told of.
            assert set(one.client.health().nodes) == set(cluster.addresses)


async def test_a_cluster_that_comes_up_late_is_found(cluster: Cluster) -> None:
    with Ports() as held:
        (port,) = held.take(1)
        async with store_over(f"127.0.0.1:{port}") as one:
            with pytest.raises(StoreUnavailable):
                await one.get(key("a"))
            async with relay(cluster.nodes[0].port, port):

                async def shared() -> bool:
                    return (await one.put(key("a"))).shared

                await until(shared)
            assert set(one.client.health().nodes) == set(cluster.addresses)


async def test_a_node_that_was_not_known_is_used_once_it_has_slots(doomed_cluster: Cluster) -> None:
    cluster = doomed_cluster
    async with store_over(",".join(cluster.addresses), refresh_s=600) as one:
        await one.put(key("a"), 4.0)
        name = one.cache.name(key("a")).decode()
        owner = cluster.owner_of(name)
        added = await asyncio.to_thread(cluster.add_node, owner)
        assert added.announced not in one.client.health().nodes
        await asyncio.to_thread(cluster.hand_over, added)
        async with store_over(",".join(cluster.addresses[:3])) as other:
            assert await other.get(key("a")) == 4.0
        assert await one.store.delete(key("a"))
        assert cluster.owner_of(name) is added
        assert one.count("failures", kind="unavailable") == 0


async def test_a_burst_of_reads_opens_no_breaker_and_starves_no_tenant(
    cluster: Cluster, nodes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, timeout_s = LoopClock(monkeypatch), 20.0
    bounds = {"timeout_s": timeout_s, "connections": 2, "refresh_s": 1e6}
    async with store_over(nodes, capacity=32 * SLOT) as writer:
        owner = cluster.owner_of(writer.cache.name(key("0")))
        many, few = (of_node(cluster, writer, owner, tenant, n) for tenant, n in MANY_AND_FEW)
        for each in (*many, *few):
            await writer.put(each)
    async with store_over(nodes, capacity=32 * SLOT, **bounds) as reader:
        # It would take the time that is added for the silence of a node.
        await reader.listening.aclose()
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

        # The last have waited longer for their turn than a node may take for an answer.
        assert clock.added_s > 1.5 * timeout_s
        assert reads == [1.0] * len(reads)
        assert reader.count("failures", kind="unavailable") == 0
        assert all(reader.client.health().nodes.values())
        # They came last, and did not wait for all who came before.
        assert order.index("few") < len(many) // 2


MANY_AND_FEW = (("many", 14), ("few", 2))


def of_node(
    cluster: Cluster, gateway: Gateway, node: ServerNode, tenant: str, count: int
) -> list[EmbeddingKey]:
    """Make up so many keys of a tenant, all of one node's."""
    keys = (key(f"{number:064x}", tenant) for number in itertools.count())
    owned = (each for each in keys if cluster.owner_of(gateway.cache.name(each)) is node)
    return list(itertools.islice(owned, count))


async def test_durable_calls_that_no_replica_confirms_leave_room_for_others(
    single_masters: Cluster,
) -> None:
    cluster, nodes = single_masters, ",".join(single_masters.addresses)
    async with (
        store_over(nodes, capacity=32 * SLOT, durable_s=600) as one,
        store_over(nodes, capacity=32 * SLOT, durable_s=0.05) as hasty,
    ):
        owner = cluster.owner_of(one.cache.name(key("0")))
        # Twice as many as there are connections.
        keys = of_node(cluster, one, owner, "default", 16)
        for each in keys:
            await one.put(each)
        (node,) = (node for node in one.client.nodes if node.address == owner.announced)

        async def durable(gateway: Gateway, each: EmbeddingKey) -> None:
            async with gateway.store.lease(each, durable=True):
                pass

        waiting = [asyncio.create_task(durable(one, each)) for each in keys]
        # Half of the connections wait for a confirmation that does not come.
        await until(lambda: node._permits._free == 4)
        for _ in range(10):
            assert (await one.put(keys[0])).shared
            assert (await one.put(key("another"))).shared
        assert not any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        await asyncio.wait(waiting)

        for each in keys:
            await hasty.get(each)
        refused = await asyncio.gather(
            *(durable(hasty, each) for each in keys), return_exceptions=True
        )
        assert all(isinstance(each, StoreUnavailable) for each in refused)
        assert all("confirmed" in str(each) for each in refused)
        assert hasty.client.health().nodes[owner.announced]


async def ping(node: Node) -> bool:
    try:
        return bool(await node.run(Batch([("PING",)])))
    except NodeUnavailable:
        return False


async def test_who_waits_for_a_node_that_hangs_does_not_try_it_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock(monkeypatch)
    async with answering(0) as (port, opened):
        node = node_at(port, connections=1)
        waiting = asyncio.gather(*(ping(node) for _ in range(20)))
        await until(lambda: opened)
        clock.added_s += 20.0
        assert await waiting == [False] * 20
        assert node.breaker.open
        assert len(opened) == 1
        await node.aclose()


async def test_a_node_that_answers_others_is_slow_and_not_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = LoopClock(monkeypatch)
    async with answering(1) as (port, opened):
        node = node_at(port, connections=2)
        assert await ping(node)
        # The first connection goes on being answered, while the second is not.
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
    "answer",
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
async def test_what_talks_nonsense_is_an_outage(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_RETRY_S", 0.01)
    with capture_logs() as log:
        await is_an_outage(answer)
    assert [line for line in log if line["log_level"] == "error"] == []


async def is_an_outage(answer: bytes) -> None:
    async with (
        answering(1000, answer * 6) as (port, opened),
        # Some of these are not the whole of an answer, and then time has to pass.
        store_over(f"127.0.0.1:{port}", timeout_s=0.05, durable_s=0.05, refresh_s=0.02) as one,
    ):
        # A map that makes sense, so that all is asked of it.
        one.client.slots.owners[:] = [("127.0.0.1", port)] * len(one.client.slots.owners)
        with pytest.raises(StoreUnavailable):
            await one.get(key("a"))
        assert not (await one.put(key("a"))).shared
        with pytest.raises(StoreUnavailable):
            await one.store.delete(key("a"))
        with pytest.raises(StoreUnavailable):
            await one.cache.renew(key("a"), 5, durable=True)
        # The map is asked for again.
        before = len(opened)
        await until(lambda: len(opened) > before + 1)
