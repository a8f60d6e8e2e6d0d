"""Node failures, hanging nodes and resharding under load."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from samserve.cache.shared.scripts import VALUE

from harness.cluster.cluster import Cluster
from tests.cluster.caches import SLOT
from tests.cluster.clusters import limited
from tests.cluster.gateways import local_gateway, local_gateways
from tests.cluster.load import Clients
from tests.support.waiting import until

pytestmark = pytest.mark.slow

NUMBERS = range(12)
# A dead node refuses connections at once.  The timeout for a hanging node must be short, but longer
# than a busy machine delays the response of a healthy one.
SETTINGS: dict[str, Any] = {"cache": {"shared": {"revalidate_interval_s": 0.2}}}
HANGING: dict[str, Any] = {
    "cache": {"shared": {"revalidate_interval_s": 0.2, "timeout_s": 3.0, "connect_timeout_s": 2.0}}
}


def name_of(embedding_id: str) -> str:
    return f"samserve:default:{embedding_id}"


async def all_durable(clients: Clients) -> None:
    for number in NUMBERS:
        assert await clients.embed(number, durable=True) is not None


async def test_durable_embeddings_survive_the_kill_of_a_master(
    disposable_cluster: Cluster,
) -> None:
    cluster = disposable_cluster
    async with local_gateways(cluster, SETTINGS) as (first, second):
        clients = Clients([first, second])
        await all_durable(clients)
        master = cluster.owner_of(name_of(clients.ids[0]))
        lost = [n for n in NUMBERS if cluster.owner_of(name_of(clients.ids[n])) is master]
        others = [n for n in NUMBERS if n not in lost]
        assert lost
        assert others

        async with clients.working(NUMBERS) as tally:
            await until(lambda: tally.counts["predict"] > 20)
            await asyncio.to_thread(master.kill)
            await asyncio.to_thread(cluster.wait_ready)
            # Enough calls for every client to have used the new master.
            enough = tally.counts["predict"] + 100
            await until(lambda: tally.counts["predict"] > enough)

        assert tally.unexpected == []
        assert tally.counts["EMBEDDING_NOT_FOUND"] == 0
        # A gateway with an empty local tier finds all durable embeddings.
        async with local_gateway(cluster, SETTINGS) as third:
            fresh = Clients([third], ids=dict(clients.ids))
            for number in NUMBERS:
                assert await fresh.predict(number) == "found"
            assert await fresh.stored(lost[0]) == "STORED_SHARED"
            assert third.service.engine.counts["encode_begun"] <= 1  # the warm-up
        assert fresh.tally.unexpected == []


async def test_durable_embeddings_survive_the_restart_of_a_master_without_failover(
    disposable_cluster: Cluster,
) -> None:
    cluster = disposable_cluster
    async with local_gateway(cluster, SETTINGS) as server:
        clients = Clients([server])
        await all_durable(clients)
        for master in cluster.masters:
            # Like a supervisor: restart the same node at once.
            await asyncio.to_thread(master.kill)
            await asyncio.to_thread(master.start)
            await asyncio.to_thread(cluster.wait_ready)
            assert master in cluster.masters
    async with local_gateway(cluster, SETTINGS) as other:
        fresh = Clients([other], ids=dict(clients.ids))
        assert [await fresh.predict(number) for number in NUMBERS] == ["found"] * len(NUMBERS)
    assert clients.tally.unexpected == fresh.tally.unexpected == []


async def test_without_replicas_only_keys_of_the_dead_node_fail_until_the_image_is_sent(
    disposable_masters: Cluster,
) -> None:
    cluster = disposable_masters
    async with local_gateways(cluster, SETTINGS) as (first, second):
        writer = Clients([first])
        for number in NUMBERS:
            await writer.embed(number)
        master = cluster.owner_of(name_of(writer.ids[0]))
        lost = {n for n in NUMBERS if cluster.owner_of(name_of(writer.ids[n])) is master}
        await asyncio.to_thread(master.kill)

        # The local tier of the second gateway is empty.
        reader = Clients([second], ids=dict(writer.ids))
        results = {number: await reader.predict(number) for number in NUMBERS}

        assert {n for n, result in results.items() if result != "found"} == lost
        assert {results[n] for n in lost} == {"CACHE_UNAVAILABLE"}
        # After the image was sent, the id is found in the local tier of this gateway.
        assert {await reader.predict(number) for number in NUMBERS} == {"found"}
        # The first gateway uses its own local tier.
        assert {await writer.predict(number) for number in NUMBERS} == {"found"}
        assert reader.tally.unexpected == writer.tally.unexpected == []


def stored_values(cluster: Cluster) -> int:
    """Return the number of embeddings that are completely in the cluster."""
    return sum(
        master.client.hexists(key, VALUE)
        for master in cluster.masters
        for key in master.client.scan_iter()
    )


async def test_the_local_tier_serves_during_an_outage_and_refills_the_empty_cluster(
    disposable_cluster: Cluster,
) -> None:
    cluster = disposable_cluster
    async with local_gateways(cluster, SETTINGS) as (first, second):
        writer, reader = Clients([first]), Clients([second])
        await writer.embed(0)
        await writer.embed(1)
        await asyncio.to_thread(cluster.kill)

        # From the local tier, and by a new encode.
        assert await writer.predict(0) == "found"
        assert await writer.stored(2) == "STORED_LOCAL"
        reader.ids = dict(writer.ids)
        assert await reader.predict(1) == "CACHE_UNAVAILABLE"
        assert await reader.predict(1) == "found"

        for node in cluster.nodes:
            node.lose_data()
        await asyncio.to_thread(cluster.start_again)

        async def shared_again() -> bool:
            return await writer.stored(3) == "STORED_SHARED"

        await until(shared_again)
        # Embeddings in the local tier are written to the cluster again when they are used.
        assert await writer.predict(0) == "found"

        async def rewritten() -> bool:
            await writer.predict(2)
            return stored_values(cluster) >= 3

        await until(rewritten)
        assert await Clients([second], ids=writer.ids).predict(2) == "found"
        assert writer.tally.unexpected == reader.tally.unexpected == []


async def test_a_hanging_node_opens_its_circuit_and_affects_no_other_keys(
    disposable_masters: Cluster,
) -> None:
    cluster = disposable_masters
    async with local_gateways(cluster, HANGING) as (first, second):
        writer = Clients([first])
        for number in NUMBERS:
            await writer.embed(number)
        master = cluster.owner_of(name_of(writer.ids[0]))
        lost = [n for n in NUMBERS if cluster.owner_of(name_of(writer.ids[n])) is master]
        unaffected = [n for n in NUMBERS if n not in lost]
        reader = Clients([second], ids=dict(writer.ids))
        master.stop_process()
        try:
            # Concurrently, so that calls that need the node run beside calls that do not.
            await asyncio.gather(*(reader.predict(number) for number in NUMBERS))
            assert reader.tally.counts["CACHE_UNAVAILABLE"] == len(lost)
            assert reader.tally.counts["EMBEDDING_NOT_FOUND"] == 0

            async def circuit_open() -> bool:
                return (
                    await second.metric("samserve_cache_shared_node_up", node=master.address) == 0
                )

            await until(circuit_open)
            later = Clients([second], ids=dict(writer.ids))
            failures = await second.metric("samserve_cache_shared_errors_total", kind="unavailable")
            for number in unaffected:
                assert await later.predict(number) == "found"
            assert failures == await second.metric(
                "samserve_cache_shared_errors_total", kind="unavailable"
            )
            # Calls for a node with an open circuit do not wait.
            assert await later.stored(lost[0]) == "STORED_LOCAL"
        finally:
            master.resume()

        async def circuit_closed() -> bool:
            return await second.metric("samserve_cache_shared_node_up", node=master.address) == 1

        await until(circuit_closed)
        third = Clients([second], ids=dict(writer.ids))
        assert {await third.predict(number) for number in NUMBERS} == {"found"}
        assert reader.tally.unexpected == later.tally.unexpected == third.tally.unexpected == []


async def test_resharding_under_load_causes_no_error(disposable_cluster: Cluster) -> None:
    cluster = disposable_cluster
    async with local_gateways(cluster, SETTINGS) as (first, second):
        clients = Clients([first, second])
        await all_durable(clients)
        one, other = cluster.masters[:2]
        slots = sorted(
            {
                cluster.slot_of(name_of(clients.ids[n]))
                for n in NUMBERS
                if cluster.owner_of(name_of(clients.ids[n])) is one
            }
        )
        assert len(slots) >= 2
        async with clients.working(NUMBERS) as tally:
            for _ in range(2):
                await asyncio.to_thread(cluster.move_slots, slots, other)
                await asyncio.to_thread(cluster.move_slots, slots, one)
            await asyncio.to_thread(cluster.move_slots, slots, other)
            enough = tally.counts["predict"] + 20
            await until(lambda: tally.counts["predict"] > enough)

        assert tally.unexpected == []
        assert tally.counts["CACHE_UNAVAILABLE"] == tally.counts["EMBEDDING_NOT_FOUND"] == 0
        assert tally.counts["STORED_LOCAL"] == 0
        fresh = Clients([second], ids=dict(clients.ids))
        assert {await fresh.predict(number) for number in NUMBERS} == {"found"}


async def test_eviction_in_the_cluster_fails_no_call(disposable_masters: Cluster) -> None:
    cluster = disposable_masters
    with limited(cluster, 3 * SLOT, "allkeys-lru"):
        async with local_gateways(cluster, SETTINGS) as (first, second):
            clients = Clients([first])
            for number in NUMBERS:
                assert await clients.embed(number) is not None
            others = Clients([second], ids=dict(clients.ids))
            # The newest first: each embedding that is written evicts the oldest.
            results = {await others.predict(number) for number in reversed(NUMBERS)}
            assert results == {"found", "EMBEDDING_NOT_FOUND"}
            assert clients.tally.unexpected == others.tally.unexpected == []
            assert clients.tally.counts["STORED_SHARED"] > 0
