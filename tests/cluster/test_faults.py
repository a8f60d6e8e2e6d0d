"""Nodes that die, hang, and give their slots away while clients work."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from harness.cluster.cluster import Cluster
from tests.cluster.clusters import limited
from tests.cluster.gateways import local_gateway, local_gateways
from tests.cluster.load import Clients
from tests.cluster.stores import SLOT
from tests.support.waiting import until

pytestmark = pytest.mark.slow

NUMBERS = range(12)
# A node that is dead refuses connections at once.  Of one that hangs a gateway must not wait long,
# but longer than a busy machine keeps a living one from its answer.
SETTINGS: dict[str, Any] = {"cache": {"check_s": 0.2}}
HANGING: dict[str, Any] = {"cache": {"check_s": 0.2, "timeout_s": 3.0, "connect_s": 2.0}}


def name_of(embedding_id: str) -> str:
    return f"samserve:default:{embedding_id}"


async def all_durable(clients: Clients) -> None:
    for number in NUMBERS:
        assert await clients.embed(number, durable=True) is not None


async def test_the_kill_of_a_master_loses_nothing_that_was_durable(
    doomed_cluster: Cluster,
) -> None:
    cluster = doomed_cluster
    async with local_gateways(cluster, SETTINGS) as (first, second):
        clients = Clients([first, second])
        await all_durable(clients)
        victim = cluster.owner_of(name_of(clients.ids[0]))
        lost = [n for n in NUMBERS if cluster.owner_of(name_of(clients.ids[n])) is victim]
        others = [n for n in NUMBERS if n not in lost]
        assert lost
        assert others

        async with clients.working(NUMBERS) as tally:
            await until(lambda: tally.counts["click"] > 20)
            await asyncio.to_thread(victim.kill)
            await asyncio.to_thread(cluster.wait_ready)
            # Long enough for every caller to have met the new master.
            enough = tally.counts["click"] + 100
            await until(lambda: tally.counts["click"] > enough)

        assert tally.unexpected == []
        assert tally.counts["EMBEDDING_NOT_FOUND"] == 0
        # Service has resumed by itself: what was durable is there for a gateway that never saw it.
        async with local_gateway(cluster, SETTINGS) as third:
            fresh = Clients([third], ids=dict(clients.ids))
            for number in NUMBERS:
                assert await fresh.click(number) == "found"
            assert await fresh.stored(lost[0]) == "STORED_SHARED"
            assert third.service.engine.counts["encode_begun"] <= 1  # the warm-up
        assert fresh.tally.unexpected == []


async def test_a_master_that_is_restarted_before_its_replica_takes_over_loses_nothing_durable(
    doomed_cluster: Cluster,
) -> None:
    cluster = doomed_cluster
    async with local_gateway(cluster, SETTINGS) as server:
        clients = Clients([server])
        await all_durable(clients)
        for master in cluster.masters:
            # As a supervisor does: the same node, at once.
            await asyncio.to_thread(master.kill)
            await asyncio.to_thread(master.start)
            await asyncio.to_thread(cluster.wait_ready)
            assert master in cluster.masters
    async with local_gateway(cluster, SETTINGS) as other:
        fresh = Clients([other], ids=dict(clients.ids))
        assert [await fresh.click(number) for number in NUMBERS] == ["found"] * len(NUMBERS)
    assert clients.tally.unexpected == fresh.tally.unexpected == []


async def test_without_replicas_only_the_keys_of_the_dead_miss_and_pictures_heal(
    single_masters: Cluster,
) -> None:
    cluster = single_masters
    async with local_gateways(cluster, SETTINGS) as (first, second):
        writer = Clients([first])
        for number in NUMBERS:
            await writer.embed(number)
        victim = cluster.owner_of(name_of(writer.ids[0]))
        lost = {n for n in NUMBERS if cluster.owner_of(name_of(writer.ids[n])) is victim}
        await asyncio.to_thread(victim.kill)

        # The second gateway has none of them in memory.
        reader = Clients([second], ids=dict(writer.ids))
        answers = {number: await reader.click(number) for number in NUMBERS}

        assert {n for n, answer in answers.items() if answer != "found"} == lost
        assert {answers[n] for n in lost} == {"STORE_UNAVAILABLE"}
        # Healed by the picture: now the id is answered, here and by memory only.
        assert {await reader.click(number) for number in NUMBERS} == {"found"}
        # And the first goes on from its own memory.
        assert {await writer.click(number) for number in NUMBERS} == {"found"}
        assert reader.tally.unexpected == writer.tally.unexpected == []


async def test_the_death_of_the_whole_cluster_costs_a_share_and_it_fills_again(
    doomed_cluster: Cluster,
) -> None:
    cluster = doomed_cluster
    async with local_gateways(cluster, SETTINGS) as (first, second):
        writer, reader = Clients([first]), Clients([second])
        await writer.embed(0)
        await writer.embed(1)
        await asyncio.to_thread(cluster.kill)

        # From memory, and from fresh encodes.
        assert await writer.click(0) == "found"
        assert await writer.stored(2) == "STORED_LOCAL"
        reader.ids = dict(writer.ids)
        assert await reader.click(1) == "STORE_UNAVAILABLE"
        assert await reader.click(1) == "found"

        for node in cluster.nodes:
            node.lose_data()
        await asyncio.to_thread(cluster.start_again)

        async def shared_again() -> bool:
            return await writer.stored(3) == "STORED_SHARED"

        await until(shared_again)
        # What is in memory comes back into the cluster when it is used.
        assert await writer.click(0) == "found"

        async def refilled() -> bool:
            await writer.click(2)
            return len(cluster.keys()) >= 3

        await until(refilled)
        assert await Clients([second], ids=writer.ids).click(2) == "found"
        assert writer.tally.unexpected == reader.tally.unexpected == []


async def test_a_node_that_hangs_costs_the_breaker_and_nobody_else(
    single_masters: Cluster,
) -> None:
    cluster = single_masters
    async with local_gateways(cluster, HANGING) as (first, second):
        writer = Clients([first])
        for number in NUMBERS:
            await writer.embed(number)
        victim = cluster.owner_of(name_of(writer.ids[0]))
        lost = [n for n in NUMBERS if cluster.owner_of(name_of(writer.ids[n])) is victim]
        living = [n for n in NUMBERS if n not in lost]
        reader = Clients([second], ids=dict(writer.ids))
        victim.stop_process()
        try:
            # All at once, so that those that need the node wait beside those that do not.
            await asyncio.gather(*(reader.click(number) for number in NUMBERS))
            assert reader.tally.counts["STORE_UNAVAILABLE"] == len(lost)
            assert reader.tally.counts["EMBEDDING_NOT_FOUND"] == 0

            async def left_alone() -> bool:
                return await second.metric("samserve_cache_node_away", node=victim.address) == 1

            await until(left_alone)
            calm = Clients([second], ids=dict(writer.ids))
            failures = await second.metric("samserve_cache_failures_total", kind="unavailable")
            for number in living:
                assert await calm.click(number) == "found"
            assert failures == await second.metric(
                "samserve_cache_failures_total", kind="unavailable"
            )
            # What belongs to a node whose breaker is open waits for nothing.
            assert await calm.stored(lost[0]) == "STORED_LOCAL"
        finally:
            victim.resume()

        async def back() -> bool:
            return await second.metric("samserve_cache_node_away", node=victim.address) == 0

        await until(back)
        third = Clients([second], ids=dict(writer.ids))
        assert {await third.click(number) for number in NUMBERS} == {"found"}
        assert reader.tally.unexpected == calm.tally.unexpected == third.tally.unexpected == []


async def test_slots_move_under_load_without_an_error(doomed_cluster: Cluster) -> None:
    cluster = doomed_cluster
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
            enough = tally.counts["click"] + 20
            await until(lambda: tally.counts["click"] > enough)

        assert tally.unexpected == []
        assert tally.counts["STORE_UNAVAILABLE"] == tally.counts["EMBEDDING_NOT_FOUND"] == 0
        assert tally.counts["STORED_LOCAL"] == 0
        fresh = Clients([second], ids=dict(clients.ids))
        assert {await fresh.click(number) for number in NUMBERS} == {"found"}


async def test_a_cluster_that_evicts_fails_no_call(single_masters: Cluster) -> None:
    cluster = single_masters
    with limited(cluster, 3 * SLOT, "allkeys-lru"):
        async with local_gateways(cluster, SETTINGS) as (first, second):
            clients = Clients([first])
            for number in NUMBERS:
                assert await clients.embed(number) is not None
            others = Clients([second], ids=dict(clients.ids))
            # The latest first: what is healed drives out what is oldest.
            answers = {await others.click(number) for number in reversed(NUMBERS)}
            assert answers == {"found", "EMBEDDING_NOT_FOUND"}
            assert clients.tally.unexpected == others.tally.unexpected == []
            assert clients.tally.counts["STORED_SHARED"] > 0
