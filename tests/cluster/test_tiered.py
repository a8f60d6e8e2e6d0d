"""What two stores over one cluster find, at every turn that matters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError
from samserve.engines.fake import MODEL
from samserve.errors import EmbeddingNotFound, StoreUnavailable
from samserve.stores.shared import value_format
from samserve.stores.shared.redis import node as node_module
from samserve.types import EmbeddingKey

from harness.cluster.cluster import Cluster
from harness.cluster.node import Node
from harness.cluster.ports import Ports
from tests.cluster.clusters import limited
from tests.cluster.stores import FACTS, SLOT, Gateway, key, store_over, tensors
from tests.support.clock import Clock
from tests.support.valkey import single_server
from tests.support.waiting import until

A = key("a" * 64)


@pytest.fixture
def clock() -> Clock:
    """By which the stores of `pair` look again after a second."""
    return Clock()


@pytest.fixture
async def pair(nodes: str, clock: Clock) -> AsyncIterator[tuple[Gateway, Gateway]]:
    async with (
        store_over(nodes, check_s=1, now=clock) as one,
        store_over(nodes, check_s=1, now=clock) as other,
    ):
        yield one, other


async def test_what_one_publishes_the_other_leases(pair: tuple[Gateway, Gateway]) -> None:
    one, other = pair
    published = await one.put(A, 2.5)

    async with other.store.lease(A) as embedding:
        assert embedding.facts == FACTS
        assert embedding.shared
        assert (embedding.tensors["image_embedding"] == 2.5).all()
        assert embedding.expires_at == pytest.approx(published.expires_at, abs=1.0)
        with pytest.raises(ValueError, match="read-only"):
            embedding.tensors["image_embedding"][0] = 0
    assert published.shared
    # Now it is in memory, and is not read again.
    assert await other.get(A) == 2.5
    assert (other.count("requests", tier="shared", result="hit"), other.memory.stats().entries) == (
        1,
        1,
    )


async def test_tenants_do_not_find_each_others(pair: tuple[Gateway, Gateway]) -> None:
    one, other = pair
    await one.put(A)

    for tenant in ("other", "default:x", "", "DEFAULT", "default/", "d%65fault"):
        assert await other.get(key(A.embedding_id, tenant)) is None
        assert not await other.store.delete(key(A.embedding_id, tenant))
    # Names that would be one if they were only put together.
    await one.put(key("c", "a:b"), 7.0)
    assert await other.get(key("b:c", "a")) is None
    assert await other.get(A) == 1.0


async def test_concurrent_misses_are_one_read(pair: tuple[Gateway, Gateway]) -> None:
    one, other = pair
    await one.put(A, 3.0)

    assert set(await asyncio.gather(*(other.get(A) for _ in range(50)))) == {3.0}
    assert other.count("requests", tier="shared", result="hit") == 1
    assert set(await asyncio.gather(*(other.get(key("none")) for _ in range(50)))) == {None}
    assert other.count("requests", tier="shared", result="miss") == 1


async def test_a_delete_takes_it_out_of_memory_where_nobody_asks(nodes: str) -> None:
    # No look at the key would find out in this time.
    async with store_over(nodes, check_s=600) as one, store_over(nodes, check_s=600) as other:
        name = key("a:b/c" * 8, "tenant: ü%41")
        await one.put(name)
        assert await other.get(name) == 1.0
        await until_dropped(one, other, name)
        assert await other.get(name) is None


async def until_dropped(one: Gateway, other: Gateway, name: EmbeddingKey) -> None:
    """Delete at one gateway until it is out of the memory of the other.

    Again and again: a store listens a moment after it is opened.
    """

    async def dropped() -> bool:
        await one.store.delete(name)
        return not other.memory.stats().entries

    await until(dropped)


async def test_deletions_are_heard_again_after_the_node_that_told_of_them_has_died(
    doomed_cluster: Cluster,
) -> None:
    # With the masters as seeds a store listens at replicas, which it asks before seeds.
    seeds = ",".join(node.announced for node in doomed_cluster.masters)
    async with store_over(seeds, check_s=600) as one, store_over(seeds, check_s=600) as other:
        told = await until_heard(doomed_cluster)
        # Nonsense on the channel ends nothing.
        for node in told:
            for text in (b"", b"x", b"samserve:a", b"\xff:\xff:\xff", b":::::"):
                doomed_cluster.client(node).publish("samserve:deleted", text)
        for node in told:
            await asyncio.to_thread(node.kill)
        await one.put(A)
        assert await other.get(A) == 1.0
        await until_dropped(one, other, A)


async def until_heard(cluster: Cluster) -> list[Node]:
    """Wait until two stores listen; gives the nodes at which they do."""

    def told() -> list[Node]:
        return [
            node
            for node in cluster.nodes
            for _, count in cluster.client(node).pubsub_numsub("samserve:deleted")
            for _ in range(count)
        ]

    await until(lambda: len(told()) == 2)
    return list(dict.fromkeys(told()))


async def test_who_does_not_hear_of_a_delete_finds_out_in_time(
    pair: tuple[Gateway, Gateway], clock: Clock
) -> None:
    one, other = pair
    await other.listening.aclose()
    await one.put(A)
    assert await other.get(A) == 1.0
    await one.store.delete(A)
    clock.now += 1.1

    assert await one.get(A) is None
    assert await other.get(A) is None
    # Out of memory, and not only out of sight.
    assert (other.memory.stats().entries, len(other.copies)) == (0, 0)
    assert not await other.store.delete(A)
    # So does who only asks to extend its life.
    await one.put(A)
    assert await other.get(A) == 1.0
    await one.store.delete(A)
    assert await other.get(A, renew=True) is None


async def test_what_may_have_been_deleted_unheard_is_asked_for_again(nodes: str) -> None:
    async with store_over(nodes, check_s=600) as one, store_over(nodes, check_s=600) as other:
        await other.listening.aclose()
        await one.put(A)
        assert await other.get(A) == 1.0
        await one.store.delete(A)
        assert await other.get(A) == 1.0

        async def forgotten() -> bool:
            return await other.get(A) is None

        async with other.cache.listening(other.memory.drop, other.copies.invalidate_all):
            await until(forgotten)


async def test_what_is_written_again_is_bounded(nodes: str, cluster: Cluster) -> None:
    async with store_over(nodes, check_s=0, capacity=32 * SLOT) as one:
        names = [key(f"{n:064x}") for n in range(20)]
        for name in names:
            await one.put(name)
        cluster.flush()
        seen: list[int] = []

        async def use(name: EmbeddingKey) -> None:
            await one.get(name)
            seen.append(len(one.store._refills))

        await asyncio.gather(*map(use, names))
        assert 1 <= max(seen) <= 8
        await settled(one)


async def test_a_slot_that_was_being_written_does_not_bring_back_what_was_deleted(
    pair: tuple[Gateway, Gateway],
) -> None:
    one, other = pair
    slots = [await one.write(A), await other.write(A)]
    await one.store.delete(A)

    for gateway, slot in zip(pair, slots, strict=True):
        async with gateway.store.publish(slot) as embedding:
            assert not embedding.shared
            # Whoever has waited for it may use it.
            assert (embedding.tensors["image_embedding"] == 1.0).all()
        assert await gateway.get(A) is None
        assert gateway.memory.stats().bytes == 0


async def test_what_is_written_after_a_delete_is_there_again(
    pair: tuple[Gateway, Gateway], clock: Clock
) -> None:
    one, other = pair
    early = await other.write(A, 1.0)
    await one.store.delete(A)
    late = await one.write(A, 2.0)
    # A second delete spares nothing that has begun before it.
    async with other.store.publish(early) as embedding:
        assert not embedding.shared
    async with one.store.publish(late) as embedding:
        assert embedding.shared
    assert [await gateway.get(A) for gateway in pair] == [2.0, 2.0]

    later = await one.write(A, 3.0)
    await other.store.delete(A)
    async with one.store.publish(later):
        pass
    clock.now += 1.1
    assert [await gateway.get(A) for gateway in pair] == [None, None]


async def test_a_delete_wins_over_a_read_that_has_its_value_already(
    pair: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await one.put(A)
    await other.listening.aclose()
    fetch, fetched, go = other.cache._fetch, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any) -> Any:
        found = await fetch(*arguments)
        fetched.set()
        await go.wait()
        return found

    monkeypatch.setattr(other.cache, "_fetch", slowly)
    reading = asyncio.create_task(other.get(A))
    await fetched.wait()
    await other.store.delete(A)
    go.set()

    assert await reading is None
    assert await other.get(A) is None
    assert other.memory.stats().bytes == 0


async def test_a_delete_wins_over_a_read_that_comes_before_the_cluster_knows(
    pair: tuple[Gateway, Gateway], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await one.put(A)
    await other.listening.aclose()
    delete = other.cache.delete

    async def read_before(*arguments: Any) -> bool:
        assert await other.get(A) == 1.0
        return await delete(*arguments)

    monkeypatch.setattr(other.cache, "delete", read_before)
    await other.store.delete(A)

    assert await other.get(A) is None
    assert other.memory.stats().bytes == 0


@pytest.mark.parametrize(("second", "reads"), [(2.0, 1), (1.0, 0)], ids=["differs", "equal"])
async def test_who_writes_second_goes_on_with_what_the_first_has_written(
    pair: tuple[Gateway, Gateway], second: float, reads: int
) -> None:
    one, other = pair
    # Two engines need not agree to the last bit; what is equal is not read back.
    slots = [await one.write(A, 1.0), await other.write(A, second)]
    async with one.store.publish(slots[0]), other.store.publish(slots[1]) as theirs:
        assert theirs.shared
        assert (theirs.tensors["image_embedding"] == 1.0).all()

    assert other.count("requests", tier="shared", result="hit") == reads
    assert other.count("writes", result="exists") == 1
    assert await other.get(A) == 1.0
    assert (other.memory.stats().entries, other.memory.stats().bytes) == (1, SLOT)


async def test_a_damaged_value_is_counted_and_removed(
    pair: tuple[Gateway, Gateway], cluster: Cluster, clock: Clock
) -> None:
    one, other = pair
    await one.put(A)
    name = one.cache.name(A)
    server = cluster.client(cluster.owner_of(name))
    value = bytearray(server.hget(name, "v1"))
    value[-1] ^= 1
    server.hset(name, "v1", bytes(value))

    assert await other.get(A) is None
    assert other.count("requests", tier="shared", result="damaged") == 1
    assert not server.exists(name)
    # Whoever still has it in memory writes it again.
    clock.now += 1.1
    assert await one.get(A) == 1.0
    await settled(one)
    assert await other.get(A) == 1.0


async def settled(gateway: Gateway) -> None:
    """Wait for what is written in the background."""
    await until(lambda: not gateway.store._refills)


async def test_other_formats_and_other_models_are_left_alone(
    pair: tuple[Gateway, Gateway], cluster: Cluster, nodes: str
) -> None:
    one, other = pair
    name = one.cache.name(A)
    server = cluster.client(cluster.owner_of(name))
    server.hset(name, mapping={"v2": b"of the next version", "s2": b"x"})
    assert await other.get(A) is None
    assert other.count("requests", tier="shared", result="format") == 1

    await one.put(A, 4.0)
    assert server.hget(name, "v2") == b"of the next version"
    assert await other.get(A) == 4.0

    for changed in (
        replace(MODEL, encoder_digest="another"),
        replace(MODEL, preprocessing="another"),
        replace(MODEL, embedding=(replace(MODEL.embedding[0], shape=(256, 32, 128)),)),
        replace(MODEL, name="another"),
    ):
        async with store_over(nodes, models={changed.name: changed}) as stranger:
            assert await stranger.get(A) is None
            assert stranger.count("requests", tier="shared", result="model") == 1
    assert server.hexists(name, "v1")


async def test_a_key_that_holds_something_else_is_an_outage_and_never_fails_to_publish(
    pair: tuple[Gateway, Gateway], cluster: Cluster
) -> None:
    one, _ = pair
    name = one.cache.name(A)
    cluster.client(cluster.owner_of(name)).set(name, b"a string")

    with pytest.raises(StoreUnavailable, match="refused"):
        await one.get(A)
    assert not (await one.put(A)).shared
    assert await one.get(A) == 1.0
    assert one.count("failures", kind="refused") >= 2


async def test_what_the_cluster_has_lost_is_written_again_when_it_is_used(
    pair: tuple[Gateway, Gateway], cluster: Cluster, clock: Clock
) -> None:
    one, other = pair
    await one.put(A, 5.0)
    cluster.flush()
    clock.now += 1.1

    assert await one.get(A) == 5.0
    await settled(one)
    assert await other.get(A) == 5.0
    # Not more often than every few seconds, or a cache that is too small would be stirred only.
    cluster.flush()
    clock.now += 1.1
    assert await one.get(A) == 5.0
    assert not one.store._refills


async def test_a_full_cluster_never_fails_to_publish(cluster: Cluster, nodes: str) -> None:
    with limited(cluster, 4 * SLOT, "noeviction"):
        async with store_over(nodes, capacity=32 * SLOT) as one:
            shared = [(await one.put(key(str(n)), float(n))).shared for n in range(24)]

            assert True in shared
            assert False in shared
            assert one.count("failures", kind="full") > 0
            assert [await one.get(key(str(n))) for n in range(24)] == [float(n) for n in range(24)]
            # A full node can still be told to forget.
            kept = [key(str(n)) for n in range(24) if shared[n]]
            for each in kept:
                assert await one.store.delete(each)
            assert (await one.put(kept[0])).shared


async def test_memory_is_not_filled_by_reads(nodes: str) -> None:
    async with store_over(nodes) as one, store_over(nodes, capacity=2 * SLOT) as small:
        for n in range(6):
            await one.put(key(str(n)), float(n))
        for n in (0, 1, 2, 3, 4, 5, 0, 5):
            assert await small.get(key(str(n))) == float(n)
            assert small.memory.stats().bytes <= 2 * SLOT
            assert len(small.copies) == small.memory.stats().entries <= 2


async def test_renewing_extends_both_tiers(nodes: str, cluster: Cluster) -> None:
    async with store_over(nodes, ttl_s=5) as one, store_over(nodes, ttl_s=50) as longer:
        await one.put(A)
        name = one.cache.name(A)
        server = cluster.client(cluster.owner_of(name))
        assert 3000 < server.pttl(name) <= 5000
        async with longer.store.lease(A, renew=True) as embedding:
            left = embedding.expires_at
        assert server.pttl(name) > 40_000
        async with longer.store.lease(A) as embedding:
            assert embedding.expires_at == pytest.approx(left, abs=0.5)
        assert left - (await expiry(one)) > 40


async def expiry(gateway: Gateway) -> float:
    async with gateway.memory.lease(A) as embedding:
        return embedding.expires_at


async def test_one_server_without_cluster_mode_will_do() -> None:
    async with single_server() as port:
        nodes = f"127.0.0.1:{port}"
        async with store_over(nodes) as one, store_over(nodes) as other:
            assert (await one.put(A, 6.0)).shared
            assert await other.get(A) == 6.0
            assert await one.store.delete(A)


async def test_in_a_cluster_that_is_away_memory_goes_on_alone() -> None:
    with Ports() as held:
        (port,) = held.take(1)
        async with store_over(f"127.0.0.1:{port}") as alone:
            with pytest.raises(StoreUnavailable):
                await alone.get(A)
            assert not (await alone.put(A)).shared
            assert await alone.get(A) == 1.0
            with pytest.raises(StoreUnavailable, match="others may find"):
                await alone.store.delete(A)
            with pytest.raises((StoreUnavailable, EmbeddingNotFound)):
                async with alone.store.lease(A):
                    pass
            assert alone.memory.stats().bytes == 0


async def test_what_may_have_been_deleted_meanwhile_is_used_by_who_sends_the_image_only(
    clock: Clock,
) -> None:
    with Ports() as held:
        (port,) = held.take(1)
        async with store_over(f"127.0.0.1:{port}", check_s=1, unconfirmed_s=10, now=clock) as alone:
            await alone.put(A)
            clock.now += 9
            assert await alone.get(A) == 1.0
            clock.now += 2
            with pytest.raises(StoreUnavailable, match="whether the embedding was deleted"):
                await alone.get(A)
            with pytest.raises(StoreUnavailable):
                async with alone.store.lease(A, renew=True):
                    pass
            async with alone.store.lease(A, image_sent=True) as embedding:
                assert not embedding.shared
            # As if it had been embedded again.
            clock.now += 9
            assert await alone.get(A) == 1.0
            clock.now += 2
            with pytest.raises(StoreUnavailable):
                await alone.get(A)


async def test_bytes_that_were_never_an_embedding_are_no_embedding(
    pair: tuple[Gateway, Gateway], cluster: Cluster
) -> None:
    one, other = pair
    name = one.cache.name(A)
    elsewhere = one.cache.name(key("b" * 64))
    server = cluster.client(cluster.owner_of(name))
    stolen = value_format.encode(elsewhere, FACTS, tensors(9.0))
    damaged = (b"", b"\0" * 100, b"samserve", stolen, stolen[:-1], stolen + b"\0")
    for data in damaged:
        server.hset(name, mapping={"v1": data, "s1": value_format.checksum(data)})
        assert await other.get(A) is None
        assert not server.exists(name)
    # Without a checksum beside it, too.
    server.hset(name, "v1", b"samserve\1\0 nonsense")
    assert await other.get(A) is None
    assert not server.exists(name)
    assert other.count("requests", tier="shared", result="damaged") == len(damaged) + 1
    assert other.memory.stats().bytes == 0


async def test_what_was_deleted_elsewhere_since_the_work_began_does_not_come_back(
    pair: tuple[Gateway, Gateway],
) -> None:
    one, other = pair
    before = await other.store.epoch(A)
    await one.store.delete(A)
    after = await other.store.epoch(A)
    for since, found in ((before, None), (after, 1.0)):
        slot = await other.store.reserve(A, FACTS, MODEL.embedding, since=since)
        slot.tensors["image_embedding"][...] = 1.0
        async with other.store.publish(slot) as embedding:
            assert (embedding.revoked, embedding.shared) == (found is None, found is not None)
        assert [await gateway.get(A) for gateway in pair] == [found, found]
    assert not other.store._markers


async def test_writing_does_not_shorten_the_life_of_another_format(
    nodes: str, cluster: Cluster
) -> None:
    async with store_over(nodes, ttl_s=5) as one:
        name = one.cache.name(A)
        server = cluster.client(cluster.owner_of(name))
        server.hset(name, mapping={"v2": b"next", "s2": b"x"})
        server.pexpire(name, 3_600_000)
        await one.put(A)
        assert server.pttl(name) > 3_000_000


async def test_a_deletion_survives_the_death_of_its_master(doomed_cluster: Cluster) -> None:
    nodes = ",".join(doomed_cluster.addresses)
    async with store_over(nodes) as one:
        names = [key(f"{n:064x}") for n in range(12)]
        for name in names:
            await one.put(name)
        before = waits(doomed_cluster)
        for name in names:
            assert await one.store.delete(name)
        # Each has waited for a replica: on a quiet machine that makes no other difference.
        assert waits(doomed_cluster) == before + len(names)
        victim = doomed_cluster.owner_of(one.cache.name(names[0]))
        await asyncio.to_thread(doomed_cluster.fail_over, victim)
        async with store_over(nodes) as other:
            assert {await other.get(name) for name in names} == {None}


def waits(cluster: Cluster) -> int:
    """How often the masters were told to wait for a replica."""
    stats = [cluster.client(master).info("commandstats") for master in cluster.masters]
    return sum(each.get("cmdstat_wait", {"calls": 0})["calls"] for each in stats)


async def test_a_node_that_leaves_is_not_listened_to_any_more(
    doomed_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Have listeners look up sooner than the silence of a server asks for.
    monkeypatch.setattr(node_module, "_SILENCE_S", 0.1)
    cluster = doomed_cluster
    seeds = ",".join(node.announced for node in cluster.masters)
    settings = {"check_s": 600, "refresh_s": 0.1}
    async with store_over(seeds, **settings) as one, store_over(seeds, **settings) as other:
        await until_heard(cluster)
        leaving = [node for node in cluster.nodes if node not in cluster.masters]
        for node in leaving:
            cluster.client(node).execute_command("CLUSTER", "RESET", "SOFT")
        for node in cluster.masters:
            for gone in leaving:
                # Another one may have told it already.
                with suppress(ResponseError):
                    cluster.client(node).execute_command("CLUSTER", "FORGET", gone.id)
        await one.put(A)
        assert await other.get(A) == 1.0
        await until_dropped(one, other, A)
