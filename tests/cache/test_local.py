"""The local tier: the contract of `EmbeddingCache`, and its own behaviour."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from samserve.cache.local.cache import LocalCache
from samserve.cache.local.eviction import Entry, Ranking, Usage
from samserve.errors import (
    CacheUnavailable,
    EmbeddingNotFound,
    MemoryExhausted,
    Overloaded,
    QuotaExceeded,
)
from samserve.memory.anonymous import AnonymousMemory
from samserve.memory.arena import Arena
from samserve.memory.posix import SharedMemory
from samserve.memory.slot import Slot
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, Size, TensorSpec

from tests.support.clock import Clock

PAGE = 4096
SPECS = (TensorSpec("image_embedding", np.dtype(np.float16), (2, 32, 32)),)
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")

Make = Callable[..., LocalCache]


@pytest.fixture(params=["anonymous", "shared"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Creates caches of a number of pages, in either kind of memory."""
    shared = SharedMemory()
    allocate = AnonymousMemory if request.param == "anonymous" else shared.create

    def create(pages: int, **options: Any) -> LocalCache:
        return LocalCache(pages * PAGE, ttl_s=60, allocate=allocate, **options)

    yield create
    shared.close()


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


async def reserve(
    cache: LocalCache, name: str, value: float = 1.0, tenant: str = "default"
) -> Slot:
    slot = await cache.reserve(key(name, tenant), FACTS, SPECS)
    slot.tensors["image_embedding"][...] = value
    return slot


async def put(cache: LocalCache, name: str, value: float = 1.0, tenant: str = "default") -> None:
    async with cache.publish(await reserve(cache, name, value, tenant)):
        pass


def value_of(embedding: Embedding) -> float:
    """Return the value that all elements have."""
    array = embedding.tensors["image_embedding"]
    assert (array == array[0, 0, 0]).all()
    return float(array[0, 0, 0])


async def get(cache: LocalCache, name: str, tenant: str = "default") -> float | None:
    try:
        async with cache.lease(key(name, tenant)) as embedding:
            return value_of(embedding)
    except EmbeddingNotFound:
        return None


@asynccontextmanager
async def leased(cache: LocalCache, published: bool) -> AsyncIterator[Embedding]:
    """Lease a new embedding ``a`` by publishing it, or by a later lease."""
    slot = await reserve(cache, "a", 2.0)
    if published:
        async with cache.publish(slot) as embedding:
            yield embedding
        return
    async with cache.publish(slot):
        pass
    async with cache.lease(key("a")) as embedding:
        yield embedding


# The contract of `EmbeddingCache`.


async def test_an_embedding_is_visible_once_it_is_published(make: Make) -> None:
    cache = make(8)
    slot = await reserve(cache, "a", 2.5)
    assert await get(cache, "a") is None

    async with cache.publish(slot):
        assert await get(cache, "a") == 2.5

    async with cache.lease(key("a")) as embedding:
        assert (value_of(embedding), embedding.facts) == (2.5, FACTS)


@pytest.mark.parametrize("published", [True, False])
async def test_a_leased_embedding_is_not_evicted_overwritten_or_writable(
    make: Make, published: bool
) -> None:
    cache = make(2)
    async with leased(cache, published) as embedding:
        for name in "bcdef":
            await put(cache, name, 9.0)

        assert (value_of(embedding), embedding.facts) == (2.0, FACTS)
        assert await get(cache, "a") == 2.0
        with pytest.raises(ValueError, match="read-only"):
            embedding.tensors["image_embedding"][0] = 0


async def test_a_published_embedding_stays_when_the_block_fails(make: Make) -> None:
    cache = make(1)
    with pytest.raises(KeyboardInterrupt):
        async with cache.publish(await reserve(cache, "a")):
            raise KeyboardInterrupt
    assert await get(cache, "a") == 1.0

    await put(cache, "b")  # the first one is not leased any more
    assert cache.stats().bytes == PAGE


async def test_an_embedding_expires_at_its_expires_at(make: Make) -> None:
    clock = Clock()
    cache = make(8, now=clock)
    async with cache.publish(await reserve(cache, "a")) as embedding:
        assert embedding.expires_at == 1060.0
    clock.now = 1059.9
    assert await get(cache, "a") == 1.0
    clock.now = 1060.0
    assert await get(cache, "a") is None
    assert cache.stats().bytes == 0


async def test_tenants_are_isolated(make: Make) -> None:
    cache = make(8)
    await put(cache, "a", tenant="one")

    assert await get(cache, "a", tenant="two") is None
    assert not await cache.delete(key("a", "two"))
    assert await get(cache, "a", tenant="one") == 1.0


async def test_a_cache_full_of_leases_rejects_a_reservation(make: Make) -> None:
    cache = make(1)
    await put(cache, "a")

    async with cache.lease(key("a")):
        with pytest.raises(Overloaded, match="capacity"):
            await cache.reserve(key("b"), FACTS, SPECS)


async def test_an_embedding_larger_than_the_cache_is_rejected(make: Make) -> None:
    larger = (TensorSpec("x", np.dtype(np.uint8), (2 * PAGE,)),)

    with pytest.raises(Overloaded):
        await make(1).reserve(key("a"), FACTS, larger)


async def test_only_a_renewing_lease_extends_the_time_to_live(make: Make) -> None:
    clock = Clock()
    cache = make(8, now=clock)
    await put(cache, "a")
    await put(cache, "b")
    clock.now += 50
    async with cache.lease(key("a"), renew=True) as renewed, cache.lease(key("b")) as kept:
        assert (renewed.expires_at, kept.expires_at) == (1110.0, 1060.0)
    clock.now += 20

    assert await get(cache, "a") == 1.0
    assert await get(cache, "b") is None


@pytest.mark.parametrize("published", [True, False])
async def test_a_deleted_embedding_is_not_found_but_its_leases_stay_valid(
    make: Make, published: bool
) -> None:
    cache = make(2)
    async with leased(cache, published) as embedding:
        assert await cache.delete(key("a"))
        assert await get(cache, "a") is None
        await put(cache, "b", 9.0)
        await put(cache, "c", 9.0)

        assert (value_of(embedding), cache.stats().bytes) == (2.0, 2 * PAGE)
    assert cache.stats().bytes == PAGE


async def test_publishing_a_slot_does_not_undo_a_deletion(make: Make) -> None:
    cache = make(4)
    early = [await reserve(cache, "a", 2.0), await reserve(cache, "a", 3.0)]
    assert not await cache.delete(key("a"))

    async with cache.publish(early[0]) as embedding:
        assert value_of(embedding) == 2.0
        assert await get(cache, "a") is None
        assert (cache.stats().entries, cache.stats().bytes) == (0, 2 * PAGE)
    assert (cache.stats().entries, cache.stats().bytes) == (0, PAGE)
    async with cache.publish(early[1]) as embedding:
        assert value_of(embedding) == 3.0
        assert await get(cache, "a") is None
    assert cache.stats().bytes == 0


async def test_a_transient_slot_is_readable_until_it_is_discarded(make: Make) -> None:
    cache = make(1)
    slot = await cache.reserve(key("a"), FACTS, SPECS, transient=True)
    slot.tensors["image_embedding"][...] = 2.0

    assert value_of(slot.as_embedding()) == 2.0
    assert await get(cache, "a") is None
    with pytest.raises(Overloaded):
        await cache.reserve(key("b"), FACTS, SPECS)


async def test_leases_of_a_replaced_embedding_stay_valid(make: Make) -> None:
    cache = make(4)
    first, second = await reserve(cache, "a", 1.0), await reserve(cache, "a", 2.0)
    async with cache.publish(first) as embedding:
        async with cache.publish(second):
            pass

        assert (value_of(embedding), await get(cache, "a")) == (1.0, 2.0)
        assert (cache.stats().entries, cache.stats().bytes) == (1, 2 * PAGE)
    assert (cache.stats().entries, cache.stats().bytes) == (1, PAGE)


async def test_a_lease_after_a_miss_counts_neither_as_a_hit_nor_as_a_miss(make: Make) -> None:
    cache = make(4)
    for after_miss in (False, True):
        with pytest.raises(EmbeddingNotFound):
            async with cache.lease(key("a"), after_miss=after_miss):
                pass
    await put(cache, "a")
    for after_miss in (False, True):
        async with cache.lease(key("a"), after_miss=after_miss):
            pass

    assert (cache.stats().hits, cache.stats().misses) == (1, 1)


async def test_an_embedding_may_have_several_tensors(make: Make) -> None:
    cache = make(64)
    specs = (
        TensorSpec("a", np.dtype(np.float16), (3, 5)),
        TensorSpec("b", np.dtype(np.float32), (2, 7)),
    )
    slot = await cache.reserve(key("x"), FACTS, specs)
    slot.tensors["a"][...] = 1
    slot.tensors["b"][...] = 2
    async with cache.publish(slot) as embedding:
        assert {name: t.shape for name, t in embedding.tensors.items()} == {
            "a": (3, 5),
            "b": (2, 7),
        }
        assert (embedding.tensors["a"] == 1).all()
        assert (embedding.tensors["b"] == 2).all()


def pending_write() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_slot_with_pending_writes_is_not_reused(make: Make) -> None:
    cache = make(2)
    lost = await cache.reserve(key("lost"), FACTS, SPECS)
    writes = [pending_write(), pending_write()]
    lost.pending_writes.extend(writes)
    await cache.discard(lost)
    await put(cache, "a", 1.0)
    for name in "bcd":
        await put(cache, name, 9.0)
    async with cache.lease(key("d")) as embedding:
        lost.tensors["image_embedding"][...] = 7.0

        assert (embedding.tensors["image_embedding"] == 9.0).all()
        assert cache.stats().quarantined_bytes == PAGE
        with pytest.raises(Overloaded):
            await reserve(cache, "e")

        writes[0].set_result(None)
        await asyncio.sleep(0)
        assert cache.stats().quarantined_bytes == PAGE
        writes[1].set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)
        assert cache.stats().quarantined_bytes == 0
        await put(cache, "e", 5.0)

    assert await get(cache, "e") == 5.0
    assert cache.stats().bytes == 2 * PAGE


@pytest.mark.parametrize("cancelled", [True, False])
@pytest.mark.parametrize("before", [True, False])
async def test_a_slot_is_free_once_its_pending_writes_have_ended(
    make: Make, cancelled: bool, before: bool
) -> None:
    cache = make(1)
    slot, write = await cache.reserve(key("a"), FACTS, SPECS), pending_write()
    slot.pending_writes.append(write)

    def end() -> None:
        write.cancel() if cancelled else write.set_result(None)

    if before:
        end()
        await cache.discard(slot)
    else:
        await cache.discard(slot)
        end()
        for _ in range(3):
            await asyncio.sleep(0)

    assert cache.stats().bytes == 0
    await put(cache, "b")


async def test_leases_stay_readable_after_the_cache_is_closed(make: Make) -> None:
    removed = list[EmbeddingKey]()
    cache = make(8, on_removed=removed.append)
    await put(cache, "a", 2.0)
    late, lost = await reserve(cache, "b", 3.0), await reserve(cache, "c")
    async with cache.lease(key("a")) as embedding:
        await cache.aclose()
        async with cache.publish(late) as published:
            assert (value_of(embedding), value_of(published)) == (2.0, 3.0)
        await cache.discard(lost)

    assert (cache.stats().bytes, removed) == (0, [])


# The behaviour of the local tier.


async def test_the_least_recently_used_embedding_is_evicted_at_capacity(make: Make) -> None:
    cache = make(2)
    await put(cache, "a")
    await put(cache, "b")
    await get(cache, "a")
    await put(cache, "c")

    found = [await get(cache, name) for name in "abc"]

    assert found == [1.0, None, 1.0]
    assert cache.stats().evictions == 1
    assert cache.stats().bytes <= 2 * PAGE


async def test_eviction_does_not_depend_on_the_size_of_embeddings(make: Make) -> None:
    cache = make(4)
    large = (TensorSpec("image_embedding", np.dtype(np.float16), (4, 32, 32)),)
    await put(cache, "small")
    async with cache.publish(await cache.reserve(key("large"), FACTS, large)):
        pass
    for name in "ab":
        await put(cache, name)

    assert [await get(cache, name) for name in ("small", "large", "a")] == [None, 0.0, 1.0]


async def test_a_tenant_over_its_quota_evicts_its_own_embeddings(make: Make) -> None:
    cache = make(8, quota={"small": 2 * PAGE}.get)
    for name in "abc":
        await put(cache, name, tenant="large")
    for name in "abc":
        await put(cache, name, tenant="small")

    assert [await get(cache, name, "large") for name in "abc"] == [1.0] * 3
    assert [await get(cache, name, "small") for name in "abc"] == [None, 1.0, 1.0]


async def test_a_quota_full_of_leases_rejects_a_reservation(make: Make) -> None:
    cache = make(8, quota={"small": PAGE}.get)
    cache.check_quota("small", SPECS)
    await put(cache, "a", tenant="small")
    cache.check_quota("small", SPECS)  # the first one can be evicted
    async with cache.lease(key("a", "small")):
        with pytest.raises(QuotaExceeded, match="in use"):
            cache.check_quota("small", SPECS)
        with pytest.raises(QuotaExceeded, match="in use"):
            await reserve(cache, "b", tenant="small")
        cache.check_quota("large", SPECS)
        await put(cache, "a", tenant="large")


async def test_nothing_is_durable_in_the_local_tier(make: Make) -> None:
    cache = make(8)
    with pytest.raises(EmbeddingNotFound):
        async with cache.lease(key("a"), durable=True):
            pass

    await put(cache, "a")
    with pytest.raises(CacheUnavailable, match="no shared cache is configured"):
        async with cache.lease(key("a"), durable=True):
            pass
    assert await get(cache, "a") == 1.0


async def test_a_deletion_since_the_epoch_revokes_the_embedding(make: Make) -> None:
    cache = make(8)
    before = await cache.epoch(key("a"))
    await cache.delete(key("a"))
    after = await cache.epoch(key("a"))
    for since, found in ((before, None), (after, 1.0)):
        slot = await cache.reserve(key("a"), FACTS, SPECS, since=since)
        slot.tensors["image_embedding"][...] = 1.0
        async with cache.publish(slot) as embedding:
            assert embedding.revoked == (found is None)
        assert await get(cache, "a") == found
    # Deletions of other keys and tenants have no effect.
    since = await cache.epoch(key("b"))
    await cache.delete(key("a"))
    await cache.delete(key("b", "other"))
    slot = await cache.reserve(key("b"), FACTS, SPECS, since=since)
    async with cache.publish(slot) as embedding:
        assert not embedding.revoked


async def test_a_limited_number_of_deletions_is_remembered(make: Make) -> None:
    cache = make(8)
    for number in range(10_500):
        await cache.delete(key(str(number)))

    # Work that began before the oldest remembered deletion counts as deleted.
    for since, revoked in ((499, True), (500, False)):
        slot = await cache.reserve(key("another"), FACTS, SPECS, since=since)
        async with cache.publish(slot) as embedding:
            assert embedding.revoked == revoked


async def test_publish_accepts_an_expiry(make: Make) -> None:
    clock = Clock()
    cache = make(8, now=clock)
    async with cache.publish(await reserve(cache, "a"), expires_at=1010.5) as embedding:
        assert embedding.expires_at == 1010.5
    clock.now = 1010.4
    assert cache.expire() == 0
    assert await get(cache, "a") == 1.0
    clock.now = 1010.5
    assert await get(cache, "a") is None


async def test_expire_removes_expired_embeddings(make: Make) -> None:
    clock = Clock()
    cache = make(8, now=clock)
    for name in "abcd":
        await put(cache, name)
    clock.now += 30
    await put(cache, "late")
    async with cache.lease(key("a"), renew=True):
        pass
    async with cache.lease(key("b")) as embedding:
        clock.now += 30
        assert cache.expire(2) == 2
        assert cache.expire() == 1
        assert cache.expire() == 0
        assert (cache.stats().entries, cache.stats().evictions) == (2, 0)
        assert value_of(embedding) == 1.0
    assert cache.stats().bytes == 2 * PAGE
    clock.now += 30
    assert cache.expire() == 2
    assert cache.stats().bytes == 0


async def test_expired_embeddings_are_removed_before_others_are_evicted(make: Make) -> None:
    clock = Clock()
    cache = make(2, now=clock)
    async with cache.publish(await reserve(cache, "a"), expires_at=1100.0):
        pass
    async with cache.publish(await reserve(cache, "b"), expires_at=1010.0):
        pass
    clock.now = 1020.0
    await put(cache, "c")

    assert [await get(cache, name) for name in "abc"] == [1.0, None, 1.0]
    assert cache.stats().evictions == 0


async def test_on_removed_is_called_once_for_each_removal(make: Make) -> None:
    clock, removed = Clock(), list[EmbeddingKey]()
    cache = make(2, now=clock, on_removed=removed.append)

    def removed_since() -> list[str]:
        names = [key.embedding_id for key in removed]
        removed.clear()
        return names

    await put(cache, "evicted")
    await put(cache, "looked up")
    assert removed_since() == []
    await put(cache, "expired")
    assert removed_since() == ["evicted"]
    clock.now += 60
    assert await get(cache, "looked up") is None
    assert removed_since() == ["looked up"]
    cache.expire()
    assert removed_since() == ["expired"]
    await put(cache, "a")
    assert (await cache.delete(key("a")), await cache.delete(key("a"))) == (True, False)
    assert removed_since() == ["a"]
    await put(cache, "b")
    async with cache.lease(key("b")):
        clock.now += 60
        assert not await cache.delete(key("b"))
        assert removed_since() == ["b"]
    assert removed_since() == []
    await put(cache, "c")
    cache.remove(key("c"))
    cache.remove(key("c"))
    assert removed_since() == ["c"]


async def test_on_removed_is_called_before_a_replacement_is_visible(make: Make) -> None:
    seen = list[int]()
    cache = make(4, on_removed=lambda key: seen.append(entries()))

    def entries() -> int:
        return cache.stats().entries

    await put(cache, "a", 1.0)
    await put(cache, "a", 2.0)

    assert seen == [0]
    assert (entries(), await get(cache, "a")) == (1, 2.0)


async def test_a_removed_embedding_is_not_found_but_may_be_published_again(make: Make) -> None:
    cache = make(4)
    cache.remove(key("a"))
    await put(cache, "a", 1.0)
    pending = await reserve(cache, "a", 2.0)
    async with cache.lease(key("a")) as embedding:
        cache.remove(key("a"))

        assert await get(cache, "a") is None
        assert value_of(embedding) == 1.0
    assert cache.stats().bytes == PAGE
    async with cache.publish(pending):
        assert await get(cache, "a") == 2.0


async def test_contains_is_true_until_an_expired_embedding_is_removed(make: Make) -> None:
    clock = Clock()
    cache = make(4, now=clock)
    seen = [cache.contains(key("a"))]
    slot = await reserve(cache, "a")
    seen.append(cache.contains(key("a")))
    async with cache.publish(slot):
        seen.append(cache.contains(key("a")))
    clock.now += 60
    seen.append(cache.contains(key("a")))
    cache.expire()
    seen.append(cache.contains(key("a")))

    assert seen == [False, False, True, True, False]


async def test_removed_embeddings_leave_no_references(make: Make) -> None:
    clock = Clock()
    cache = make(4, now=clock)
    for number in range(200):
        name, tenant = f"{number}", f"tenant {number}"
        revoked = [await reserve(cache, name, tenant=tenant) for _ in range(2)]
        await cache.delete(key(name, tenant))
        await cache.discard(revoked[0])
        await cache.discard(await reserve(cache, name, tenant=tenant))
        async with cache.publish(revoked[1]):
            await put(cache, name, tenant=tenant)
            await put(cache, name, tenant=tenant)
        await cache.discard(await cache.reserve(key(name, tenant), FACTS, SPECS, transient=True))
        async with cache.lease(key(name, tenant), renew=True):
            cache.remove(key(name, tenant))
        await put(cache, name, tenant=tenant)
        clock.now += number % 3 * 30
    clock.now += 60
    cache.expire()

    assert (cache.stats().entries, cache.stats().bytes) == (0, 0)
    # A limited number of deleted keys is kept.
    cache._pending._deletions.clear()
    remaining = list(reachable(cache))
    assert not any(isinstance(each, Slot | Entry | Usage | EmbeddingKey) for each in remaining)
    assert all(len(each) < 100 for each in remaining if isinstance(each, Ranking))


def reachable(root: LocalCache) -> Iterator[Any]:
    """Yield all objects that a cache refers to, except code."""
    seen, found = set[int](), list(vars(root).values())
    while found:
        each = found.pop()
        if id(each) in seen or isinstance(each, type) or callable(each):
            continue
        seen.add(id(each))
        yield each
        found.extend(gc.get_referents(each))


async def test_with_two_slot_sizes_free_slots_are_zeroed(make: Make) -> None:
    """Free slots of one size keep no pages; with those of the other they would exceed capacity."""
    cache = make(4)
    slots = [await reserve(cache, name, 7.0) for name in "abc"]
    for slot in slots:
        await cache.discard(slot)
    big = (TensorSpec("x", np.dtype(np.uint8), (2 * PAGE,)),)
    await cache.discard(await cache.reserve(key("big"), FACTS, big))
    reused = [await cache.reserve(key(name), FACTS, SPECS) for name in "abcd"]

    assert {slot.index for slot in reused} == {0, 1, 2, 3}
    assert all((slot.tensors["image_embedding"] == 0).all() for slot in reused)
    reused[0].tensors["image_embedding"][...] = 7.0
    await cache.discard(reused[0])
    last = await cache.reserve(key("e"), FACTS, SPECS)
    assert last.index == reused[0].index
    assert (last.tensors["image_embedding"] == 0).all()


class CountedMemory:
    """Memory that tracks which slots, of one page each, are committed."""

    def __init__(self, slots: int, *, committed: bool) -> None:
        self.nbytes = slots * PAGE
        self.array = np.zeros(self.nbytes, dtype=np.uint8)
        self.committed = set(range(slots)) if committed else set[int]()
        self.full = False

    def commit(self, offset: int, nbytes: int) -> None:
        if self.full:
            raise MemoryExhausted("full")
        assert self.committed.isdisjoint(pages(offset, nbytes))
        self.committed |= pages(offset, nbytes)

    def release(self, offset: int, nbytes: int) -> None:
        assert self.committed >= pages(offset, nbytes)
        self.committed -= pages(offset, nbytes)


def pages(offset: int, nbytes: int) -> set[int]:
    assert nbytes > 0
    return set(range(offset // PAGE, (offset + nbytes) // PAGE))


@given(
    committed=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.sampled_from(
                ["allocate", "allocate", "fail", "free", "release pages", "release all"]
            ),
            st.integers(),
        )
    ),
)
def test_every_allocated_slot_of_an_arena_is_committed(
    committed: bool, steps: list[tuple[str, int]]
) -> None:
    memory = CountedMemory(5, committed=committed)
    arena, allocated = Arena(memory, PAGE, committed=committed), list[int]()
    for action, number in steps:
        memory.full = action == "fail"
        if action in ("allocate", "fail"):
            with suppress(MemoryExhausted):
                index = arena.allocate()
                assert (index is None) == (len(allocated) == 5)
                allocated += [] if index is None else [index]
        elif action == "release all":
            arena.release_free_pages()
            assert memory.committed == set(allocated)
        elif allocated:
            arena.free(index := allocated.pop(number % len(allocated)))
            if action == "release pages":
                arena.release_pages(index)
                assert index not in memory.committed
        assert len(set(allocated)) == len(allocated)
        assert memory.committed >= set(allocated)
    memory.full = False
    remaining = [arena.allocate() for _ in range(6 - len(allocated))]
    assert {*allocated, *remaining} == {0, 1, 2, 3, 4, None}
