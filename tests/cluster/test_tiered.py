"""Two tiered caches over one cluster: reads, writes, deletions and outages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from redis.exceptions import ResponseError
from samserve.cache.shared import value_format
from samserve.cache.shared.redis import node as node_module
from samserve.engines.fake import MODEL
from samserve.errors import CacheUnavailable, EmbeddingNotFound
from samserve.types import EmbeddingKey

from harness.cluster.cluster import Cluster
from harness.cluster.node import Node
from harness.cluster.ports import Ports
from tests.cluster.caches import FACTS, SLOT, GatewayCache, key, open_cache, tensors
from tests.cluster.clusters import limited
from tests.support.clock import Clock
from tests.support.valkey import single_server
from tests.support.waiting import until

A = key("a" * 64)


@pytest.fixture
def clock() -> Clock:
    """The clock of the caches of `pair`, which check the shared tier after one second."""
    return Clock()


@pytest.fixture
async def pair(nodes: str, clock: Clock) -> AsyncIterator[tuple[GatewayCache, GatewayCache]]:
    async with (
        open_cache(nodes, revalidate_interval_s=1, now=clock) as one,
        open_cache(nodes, revalidate_interval_s=1, now=clock) as other,
    ):
        yield one, other


async def test_a_published_embedding_can_be_leased_on_another_gateway(
    pair: tuple[GatewayCache, GatewayCache],
) -> None:
    one, other = pair
    published = await one.put(A, 2.5)

    async with other.cache.lease(A) as embedding:
        assert embedding.facts == FACTS
        assert embedding.shared
        assert (embedding.tensors["image_embedding"] == 2.5).all()
        assert embedding.expires_at == pytest.approx(published.expires_at, abs=1.0)
        with pytest.raises(ValueError, match="read-only"):
            embedding.tensors["image_embedding"][0] = 0
    assert published.shared
    # Now it is in the local tier, and is not read again.
    assert await other.get(A) == 2.5
    assert (other.count("requests", tier="shared", result="hit"), other.local.stats().entries) == (
        1,
        1,
    )


async def test_tenants_are_isolated(pair: tuple[GatewayCache, GatewayCache]) -> None:
    one, other = pair
    await one.put(A)

    for tenant in ("other", "default:x", "", "DEFAULT", "default/", "d%65fault"):
        assert await other.get(key(A.embedding_id, tenant)) is None
        assert not await other.cache.delete(key(A.embedding_id, tenant))
    # Names that would be equal if they were only concatenated.
    await one.put(key("c", "a:b"), 7.0)
    assert await other.get(key("b:c", "a")) is None
    assert await other.get(A) == 1.0


async def test_concurrent_misses_share_one_read(pair: tuple[GatewayCache, GatewayCache]) -> None:
    one, other = pair
    await one.put(A, 3.0)

    assert set(await asyncio.gather(*(other.get(A) for _ in range(50)))) == {3.0}
    assert other.count("requests", tier="shared", result="hit") == 1
    assert set(await asyncio.gather(*(other.get(key("none")) for _ in range(50)))) == {None}
    assert other.count("requests", tier="shared", result="miss") == 1


async def test_a_deletion_frees_the_local_tier_of_other_gateways(nodes: str) -> None:
    # The key is not checked in this time, so only the notification can remove it.
    async with (
        open_cache(nodes, revalidate_interval_s=600) as one,
        open_cache(nodes, revalidate_interval_s=600) as other,
    ):
        name = key("a:b/c" * 8, "tenant: ü%41")
        await one.put(name)
        assert await other.get(name) == 1.0
        await until_removed(one, other, name)
        assert await other.get(name) is None


async def until_removed(one: GatewayCache, other: GatewayCache, name: EmbeddingKey) -> None:
    """Delete at one gateway until the key is removed from the local tier of the other.

    Repeatedly, because the subscription begins a moment after the cache is opened.
    """

    async def removed() -> bool:
        await one.cache.delete(name)
        return not other.local.stats().entries

    await until(removed)


async def test_the_subscription_restarts_after_its_node_has_died(
    disposable_cluster: Cluster,
) -> None:
    # With the masters as seeds, a gateway subscribes at replicas, which are tried before seeds.
    seeds = ",".join(node.announced for node in disposable_cluster.masters)
    async with (
        open_cache(seeds, revalidate_interval_s=600) as one,
        open_cache(seeds, revalidate_interval_s=600) as other,
    ):
        subscribed = await until_subscribed(disposable_cluster)
        # Invalid messages do not end a subscription.
        for node in subscribed:
            for text in (b"", b"x", b"samserve:a", b"\xff:\xff:\xff", b":::::"):
                disposable_cluster.client(node).publish("samserve:deleted", text)
        for node in subscribed:
            await asyncio.to_thread(node.kill)
        await one.put(A)
        assert await other.get(A) == 1.0
        await until_removed(one, other, A)


async def until_subscribed(cluster: Cluster) -> list[Node]:
    """Wait until two caches have subscribed; return the nodes of their subscriptions."""

    def subscribed() -> list[Node]:
        return [
            node
            for node in cluster.nodes
            for _, count in cluster.client(node).pubsub_numsub("samserve:deleted")
            for _ in range(count)
        ]

    await until(lambda: len(subscribed()) == 2)
    return list(dict.fromkeys(subscribed()))


async def test_a_missed_deletion_is_found_by_the_next_check(
    pair: tuple[GatewayCache, GatewayCache], clock: Clock
) -> None:
    one, other = pair
    await other.subscription.aclose()
    await one.put(A)
    assert await other.get(A) == 1.0
    await one.cache.delete(A)
    clock.now += 1.1

    assert await one.get(A) is None
    assert await other.get(A) is None
    # The memory is freed as well.
    assert (other.local.stats().entries, len(other.presence)) == (0, 0)
    assert not await other.cache.delete(A)
    # A renewal finds the deletion, too.
    await one.put(A)
    assert await other.get(A) == 1.0
    await one.cache.delete(A)
    assert await other.get(A, renew=True) is None


async def test_a_new_subscription_invalidates_what_is_known(nodes: str) -> None:
    async with (
        open_cache(nodes, revalidate_interval_s=600) as one,
        open_cache(nodes, revalidate_interval_s=600) as other,
    ):
        await other.subscription.aclose()
        await one.put(A)
        assert await other.get(A) == 1.0
        await one.cache.delete(A)
        assert await other.get(A) == 1.0

        async def deleted() -> bool:
            return await other.get(A) is None

        async with other.shared.subscribed(other.local.remove, other.presence.invalidate_all):
            await until(deleted)


async def test_concurrent_rewrites_are_limited(nodes: str, cluster: Cluster) -> None:
    async with open_cache(nodes, revalidate_interval_s=0, capacity=32 * SLOT) as one:
        names = [key(f"{n:064x}") for n in range(20)]
        for name in names:
            await one.put(name)
        cluster.flush()
        seen: list[int] = []

        async def use(name: EmbeddingKey) -> None:
            await one.get(name)
            seen.append(len(one.cache._rewrites))

        await asyncio.gather(*map(use, names))
        assert 1 <= max(seen) <= 8
        await settled(one)


async def test_publishing_a_slot_does_not_undo_a_deletion(
    pair: tuple[GatewayCache, GatewayCache],
) -> None:
    one, other = pair
    slots = [await one.write(A), await other.write(A)]
    await one.cache.delete(A)

    for gateway, slot in zip(pair, slots, strict=True):
        async with gateway.cache.publish(slot) as embedding:
            assert not embedding.shared
            # The caller that waited for it may use it.
            assert (embedding.tensors["image_embedding"] == 1.0).all()
        assert await gateway.get(A) is None
        assert gateway.local.stats().bytes == 0


async def test_an_embedding_written_after_a_deletion_is_visible(
    pair: tuple[GatewayCache, GatewayCache], clock: Clock
) -> None:
    one, other = pair
    early = await other.write(A, 1.0)
    await one.cache.delete(A)
    late = await one.write(A, 2.0)
    # Another deletion revokes work that began before it.
    async with other.cache.publish(early) as embedding:
        assert not embedding.shared
    async with one.cache.publish(late) as embedding:
        assert embedding.shared
    assert [await gateway.get(A) for gateway in pair] == [2.0, 2.0]

    later = await one.write(A, 3.0)
    await other.cache.delete(A)
    async with one.cache.publish(later):
        pass
    clock.now += 1.1
    assert [await gateway.get(A) for gateway in pair] == [None, None]


async def test_a_deletion_wins_over_a_read_that_has_received_the_value(
    pair: tuple[GatewayCache, GatewayCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await one.put(A)
    await other.subscription.aclose()
    fetch, fetched, go = other.shared._fetch, asyncio.Event(), asyncio.Event()

    async def slowly(*arguments: Any) -> Any:
        found = await fetch(*arguments)
        fetched.set()
        await go.wait()
        return found

    monkeypatch.setattr(other.shared, "_fetch", slowly)
    reading = asyncio.create_task(other.get(A))
    await fetched.wait()
    await other.cache.delete(A)
    go.set()

    assert await reading is None
    assert await other.get(A) is None
    assert other.local.stats().bytes == 0


async def test_a_deletion_wins_over_a_read_before_the_marker_is_written(
    pair: tuple[GatewayCache, GatewayCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await one.put(A)
    await other.subscription.aclose()
    delete = other.shared.delete

    async def read_before(*arguments: Any) -> bool:
        assert await other.get(A) == 1.0
        return await delete(*arguments)

    monkeypatch.setattr(other.shared, "delete", read_before)
    await other.cache.delete(A)

    assert await other.get(A) is None
    assert other.local.stats().bytes == 0


@pytest.mark.parametrize(("second", "reads"), [(2.0, 1), (1.0, 0)], ids=["differs", "equal"])
async def test_the_second_writer_uses_the_value_of_the_first(
    pair: tuple[GatewayCache, GatewayCache], second: float, reads: int
) -> None:
    one, other = pair
    # Two engines need not agree to the last bit; an equal value is not read back.
    slots = [await one.write(A, 1.0), await other.write(A, second)]
    async with one.cache.publish(slots[0]), other.cache.publish(slots[1]) as published:
        assert published.shared
        assert (published.tensors["image_embedding"] == 1.0).all()

    assert other.count("requests", tier="shared", result="hit") == reads
    assert other.count("shared_writes", result="exists") == 1
    assert await other.get(A) == 1.0
    assert (other.local.stats().entries, other.local.stats().bytes) == (1, SLOT)


async def test_a_corrupt_value_is_counted_and_removed(
    pair: tuple[GatewayCache, GatewayCache], cluster: Cluster, clock: Clock
) -> None:
    one, other = pair
    await one.put(A)
    name = one.shared.name(A)
    server = cluster.client(cluster.owner_of(name))
    value = bytearray(server.hget(name, "v2"))
    value[-1] ^= 1
    server.hset(name, "v2", bytes(value))

    assert await other.get(A) is None
    assert other.count("requests", tier="shared", result="corrupt") == 1
    assert not server.exists(name)
    # A gateway that has it in its local tier writes it again.
    clock.now += 1.1
    assert await one.get(A) == 1.0
    await settled(one)
    assert await other.get(A) == 1.0


async def settled(gateway: GatewayCache) -> None:
    """Wait for rewrites in the background."""
    await until(lambda: not gateway.cache._rewrites)


async def test_values_of_other_formats_and_models_are_neither_used_nor_removed(
    pair: tuple[GatewayCache, GatewayCache], cluster: Cluster, nodes: str
) -> None:
    one, other = pair
    name = one.shared.name(A)
    server = cluster.client(cluster.owner_of(name))
    server.hset(name, mapping={"v3": b"of the next version", "s3": b"x"})
    assert await other.get(A) is None
    assert other.count("requests", tier="shared", result="format_mismatch") == 1

    await one.put(A, 4.0)
    assert server.hget(name, "v3") == b"of the next version"
    assert await other.get(A) == 4.0

    for changed in (
        replace(MODEL, encoder_digest="another"),
        replace(MODEL, preprocessing="another"),
        replace(MODEL, embedding=(replace(MODEL.embedding[0], shape=(256, 32, 128)),)),
        replace(MODEL, name="another"),
    ):
        async with open_cache(nodes, models={changed.name: changed}) as reader:
            assert await reader.get(A) is None
            assert reader.count("requests", tier="shared", result="model_mismatch") == 1
    assert server.hexists(name, "v2")


async def test_a_key_of_another_type_is_an_outage_and_does_not_fail_publish(
    pair: tuple[GatewayCache, GatewayCache], cluster: Cluster
) -> None:
    one, _ = pair
    name = one.shared.name(A)
    cluster.client(cluster.owner_of(name)).set(name, b"a string")

    with pytest.raises(CacheUnavailable, match="a command to the shared cache failed"):
        await one.get(A)
    assert not (await one.put(A)).shared
    assert await one.get(A) == 1.0
    assert one.count("shared_errors", kind="command_error") >= 2


async def test_an_embedding_that_the_cluster_has_lost_is_rewritten_on_use(
    pair: tuple[GatewayCache, GatewayCache], cluster: Cluster, clock: Clock
) -> None:
    one, other = pair
    await one.put(A, 5.0)
    cluster.flush()
    clock.now += 1.1

    assert await one.get(A) == 5.0
    await settled(one)
    assert await other.get(A) == 5.0
    # At most once every few seconds, or in a cluster that is too small rewrites would only evict.
    cluster.flush()
    clock.now += 1.1
    assert await one.get(A) == 5.0
    assert not one.cache._rewrites


async def test_a_full_cluster_does_not_fail_publish(cluster: Cluster, nodes: str) -> None:
    with limited(cluster, 4 * SLOT, "noeviction"):
        async with open_cache(nodes, capacity=32 * SLOT) as one:
            shared = [(await one.put(key(str(n)), float(n))).shared for n in range(24)]

            assert True in shared
            assert False in shared
            assert one.count("shared_errors", kind="full") > 0
            assert [await one.get(key(str(n))) for n in range(24)] == [float(n) for n in range(24)]
            # A full node still accepts deletions.
            kept = [key(str(n)) for n in range(24) if shared[n]]
            for each in kept:
                assert await one.cache.delete(each)
            assert (await one.put(kept[0])).shared


async def test_reads_do_not_exceed_the_capacity_of_the_local_tier(nodes: str) -> None:
    async with open_cache(nodes) as one, open_cache(nodes, capacity=2 * SLOT) as small:
        for n in range(6):
            await one.put(key(str(n)), float(n))
        for n in (0, 1, 2, 3, 4, 5, 0, 5):
            assert await small.get(key(str(n))) == float(n)
            assert small.local.stats().bytes <= 2 * SLOT
            assert len(small.presence) == small.local.stats().entries <= 2


async def test_renewing_extends_both_tiers(nodes: str, cluster: Cluster) -> None:
    async with open_cache(nodes, ttl_s=5) as one, open_cache(nodes, ttl_s=50) as longer:
        await one.put(A)
        name = one.shared.name(A)
        server = cluster.client(cluster.owner_of(name))
        assert 3000 < server.pttl(name) <= 5000
        async with longer.cache.lease(A, renew=True) as embedding:
            left = embedding.expires_at
        assert server.pttl(name) > 40_000
        async with longer.cache.lease(A) as embedding:
            assert embedding.expires_at == pytest.approx(left, abs=0.5)
        assert left - (await expiry(one)) > 40


async def expiry(gateway: GatewayCache) -> float:
    async with gateway.local.lease(A) as embedding:
        return embedding.expires_at


async def test_one_server_without_cluster_mode_is_supported() -> None:
    async with single_server() as port:
        nodes = f"127.0.0.1:{port}"
        async with open_cache(nodes) as one, open_cache(nodes) as other:
            assert (await one.put(A, 6.0)).shared
            assert await other.get(A) == 6.0
            assert await one.cache.delete(A)


async def test_the_local_tier_works_alone_while_the_cluster_is_unavailable() -> None:
    with Ports() as ports:
        (port,) = ports.reserve(1)
        async with open_cache(f"127.0.0.1:{port}") as alone:
            with pytest.raises(CacheUnavailable):
                await alone.get(A)
            assert not (await alone.put(A)).shared
            assert await alone.get(A) == 1.0
            with pytest.raises(CacheUnavailable, match="other gateways may find"):
                await alone.cache.delete(A)
            with pytest.raises((CacheUnavailable, EmbeddingNotFound)):
                async with alone.cache.lease(A):
                    pass
            assert alone.local.stats().bytes == 0


async def test_a_long_outage_allows_the_local_tier_only_for_calls_with_the_image(
    clock: Clock,
) -> None:
    with Ports() as ports:
        (port,) = ports.reserve(1)
        async with open_cache(
            f"127.0.0.1:{port}", revalidate_interval_s=1, stale_if_error_s=10, now=clock
        ) as alone:
            await alone.put(A)
            clock.now += 9
            assert await alone.get(A) == 1.0
            clock.now += 2
            with pytest.raises(CacheUnavailable, match="whether the embedding was deleted"):
                await alone.get(A)
            with pytest.raises(CacheUnavailable):
                async with alone.cache.lease(A, renew=True):
                    pass
            async with alone.cache.lease(A, image_sent=True) as embedding:
                assert not embedding.shared
            # This counts as if it had been embedded again.
            clock.now += 9
            assert await alone.get(A) == 1.0
            clock.now += 2
            with pytest.raises(CacheUnavailable):
                await alone.get(A)


async def test_values_with_invalid_bytes_are_removed(
    pair: tuple[GatewayCache, GatewayCache], cluster: Cluster
) -> None:
    one, other = pair
    name = one.shared.name(A)
    elsewhere = one.shared.name(key("b" * 64))
    server = cluster.client(cluster.owner_of(name))
    copied = value_format.encode(elsewhere, FACTS, tensors(9.0))
    corrupt = (b"", b"\0" * 100, b"samserve", copied, copied[:-1], copied + b"\0")
    for data in corrupt:
        server.hset(name, mapping={"v2": data, "s2": value_format.checksum(data)})
        assert await other.get(A) is None
        assert not server.exists(name)
    # Also without a checksum field.
    server.hset(name, "v2", b"samserve\2\0 nonsense")
    assert await other.get(A) is None
    assert not server.exists(name)
    assert other.count("requests", tier="shared", result="corrupt") == len(corrupt) + 1
    assert other.local.stats().bytes == 0


async def test_a_deletion_elsewhere_since_the_epoch_revokes_the_embedding(
    pair: tuple[GatewayCache, GatewayCache],
) -> None:
    one, other = pair
    before = await other.cache.epoch(A)
    await one.cache.delete(A)
    after = await other.cache.epoch(A)
    for since, found in ((before, None), (after, 1.0)):
        slot = await other.cache.reserve(A, FACTS, MODEL.embedding, since=since)
        slot.tensors["image_embedding"][...] = 1.0
        async with other.cache.publish(slot) as embedding:
            assert (embedding.revoked, embedding.shared) == (found is None, found is not None)
        assert [await gateway.get(A) for gateway in pair] == [found, found]
    assert not other.cache._markers


async def test_a_write_does_not_shorten_the_time_to_live_of_another_format(
    nodes: str, cluster: Cluster
) -> None:
    async with open_cache(nodes, ttl_s=5) as one:
        name = one.shared.name(A)
        server = cluster.client(cluster.owner_of(name))
        server.hset(name, mapping={"v3": b"next", "s3": b"x"})
        server.pexpire(name, 3_600_000)
        await one.put(A)
        assert server.pttl(name) > 3_000_000


async def test_a_deletion_survives_the_death_of_its_master(disposable_cluster: Cluster) -> None:
    nodes = ",".join(disposable_cluster.addresses)
    async with open_cache(nodes) as one:
        names = [key(f"{n:064x}") for n in range(12)]
        for name in names:
            await one.put(name)
        before = waits(disposable_cluster)
        for name in names:
            assert await one.cache.delete(name)
        # Each deletion has waited for a replica, which is only visible in this counter.
        assert waits(disposable_cluster) == before + len(names)
        master = disposable_cluster.owner_of(one.shared.name(names[0]))
        await asyncio.to_thread(disposable_cluster.fail_over, master)
        async with open_cache(nodes) as other:
            assert {await other.get(name) for name in names} == {None}


def waits(cluster: Cluster) -> int:
    """Return how often the masters have processed WAIT."""
    stats = [cluster.client(master).info("commandstats") for master in cluster.masters]
    return sum(each.get("cmdstat_wait", {"calls": 0})["calls"] for each in stats)


async def test_the_subscription_moves_when_its_node_leaves_the_cluster(
    disposable_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Subscriptions check the state of their node at this interval.
    monkeypatch.setattr(node_module, "_PING_AFTER_S", 0.1)
    cluster = disposable_cluster
    seeds = ",".join(node.announced for node in cluster.masters)
    settings = {"revalidate_interval_s": 600, "topology_refresh_interval_s": 0.1}
    async with open_cache(seeds, **settings) as one, open_cache(seeds, **settings) as other:
        await until_subscribed(cluster)
        leaving = [node for node in cluster.nodes if node not in cluster.masters]
        for node in leaving:
            cluster.client(node).execute_command("CLUSTER", "RESET", "SOFT")
        for node in cluster.masters:
            for left in leaving:
                # Another node may have propagated it already.
                with suppress(ResponseError):
                    cluster.client(node).execute_command("CLUSTER", "FORGET", left.id)
        await one.put(A)
        assert await other.get(A) == 1.0
        await until_removed(one, other, A)
