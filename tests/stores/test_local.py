"""The contract of `EmbeddingStore`, and what is the memory store's own."""

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
from samserve.errors import (
    EmbeddingNotFound,
    MemoryExhausted,
    Overloaded,
    QuotaExceeded,
    StoreUnavailable,
)
from samserve.memory.anonymous import AnonymousMemory
from samserve.memory.arena import Arena
from samserve.memory.posix import SharedMemory
from samserve.memory.slot import Slot
from samserve.stores.local.eviction import Entry, Ranking, Usage
from samserve.stores.local.store import MemoryStore
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, Size, TensorSpec

from tests.support.clock import Clock

PAGE = 4096
SPECS = (TensorSpec("image_embedding", np.dtype(np.float16), (2, 32, 32)),)
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")

Make = Callable[..., MemoryStore]


@pytest.fixture(params=["anonymous", "shared"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes stores of so many pages, in either kind of memory."""
    shared = SharedMemory()
    allocate = AnonymousMemory if request.param == "anonymous" else shared.create

    def made(pages: int, **options: Any) -> MemoryStore:
        return MemoryStore(pages * PAGE, ttl_s=60, allocate=allocate, **options)

    yield made
    shared.close()


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


async def reserve(
    store: MemoryStore, name: str, value: float = 1.0, tenant: str = "default"
) -> Slot:
    slot = await store.reserve(key(name, tenant), FACTS, SPECS)
    slot.tensors["image_embedding"][...] = value
    return slot


async def put(store: MemoryStore, name: str, value: float = 1.0, tenant: str = "default") -> None:
    async with store.publish(await reserve(store, name, value, tenant)):
        pass


def value_of(embedding: Embedding) -> float:
    """Read the value that all elements have."""
    array = embedding.tensors["image_embedding"]
    assert (array == array[0, 0, 0]).all()
    return float(array[0, 0, 0])


async def get(store: MemoryStore, name: str, tenant: str = "default") -> float | None:
    try:
        async with store.lease(key(name, tenant)) as embedding:
            return value_of(embedding)
    except EmbeddingNotFound:
        return None


@asynccontextmanager
async def held(store: MemoryStore, published: bool) -> AsyncIterator[Embedding]:
    """Hold a new embedding ``a`` as its publisher does, or as a later caller."""
    slot = await reserve(store, "a", 2.0)
    if published:
        async with store.publish(slot) as embedding:
            yield embedding
        return
    async with store.publish(slot):
        pass
    async with store.lease(key("a")) as embedding:
        yield embedding


# The contract.


async def test_what_is_published_is_found_and_not_before(make: Make) -> None:
    store = make(8)
    slot = await reserve(store, "a", 2.5)
    assert await get(store, "a") is None

    async with store.publish(slot):
        assert await get(store, "a") == 2.5

    async with store.lease(key("a")) as embedding:
        assert (value_of(embedding), embedding.facts) == (2.5, FACTS)


@pytest.mark.parametrize("published", [True, False])
async def test_what_is_held_is_not_evicted_overwritten_or_writable(
    make: Make, published: bool
) -> None:
    store = make(2)
    async with held(store, published) as embedding:
        for name in "bcdef":
            await put(store, name, 9.0)

        assert (value_of(embedding), embedding.facts) == (2.0, FACTS)
        assert await get(store, "a") == 2.0
        with pytest.raises(ValueError, match="read-only"):
            embedding.tensors["image_embedding"][0] = 0


async def test_what_is_published_stays_when_the_block_fails(make: Make) -> None:
    store = make(1)
    with pytest.raises(KeyboardInterrupt):
        async with store.publish(await reserve(store, "a")):
            raise KeyboardInterrupt
    assert await get(store, "a") == 1.0

    await put(store, "b")  # nobody holds the first any more
    assert store.stats().bytes == PAGE


async def test_what_is_published_lives_as_long_as_it_says(make: Make) -> None:
    clock = Clock()
    store = make(8, now=clock)
    async with store.publish(await reserve(store, "a")) as embedding:
        assert embedding.expires_at == 1060.0
    clock.now = 1059.9
    assert await get(store, "a") == 1.0
    clock.now = 1060.0
    assert await get(store, "a") is None
    assert store.stats().bytes == 0


async def test_embeddings_of_one_tenant_are_not_found_by_another(make: Make) -> None:
    store = make(8)
    await put(store, "a", tenant="one")

    assert await get(store, "a", tenant="two") is None
    assert not await store.delete(key("a", "two"))
    assert await get(store, "a", tenant="one") == 1.0


async def test_a_store_full_of_leases_refuses_instead_of_growing(make: Make) -> None:
    store = make(1)
    await put(store, "a")

    async with store.lease(key("a")):
        with pytest.raises(Overloaded, match="capacity"):
            await store.reserve(key("b"), FACTS, SPECS)


async def test_an_embedding_larger_than_the_store_is_refused(make: Make) -> None:
    larger = (TensorSpec("x", np.dtype(np.uint8), (2 * PAGE,)),)

    with pytest.raises(Overloaded):
        await make(1).reserve(key("a"), FACTS, larger)


async def test_only_a_renewing_lease_extends_the_time_to_live(make: Make) -> None:
    clock = Clock()
    store = make(8, now=clock)
    await put(store, "a")
    await put(store, "b")
    clock.now += 50
    async with store.lease(key("a"), renew=True) as renewed, store.lease(key("b")) as kept:
        assert (renewed.expires_at, kept.expires_at) == (1110.0, 1060.0)
    clock.now += 20

    assert await get(store, "a") == 1.0
    assert await get(store, "b") is None


@pytest.mark.parametrize("published", [True, False])
async def test_a_deleted_embedding_is_gone_at_once_but_its_holders_keep_it(
    make: Make, published: bool
) -> None:
    store = make(2)
    async with held(store, published) as embedding:
        assert await store.delete(key("a"))
        assert await get(store, "a") is None
        await put(store, "b", 9.0)
        await put(store, "c", 9.0)

        assert (value_of(embedding), store.stats().bytes) == (2.0, 2 * PAGE)
    assert store.stats().bytes == PAGE


async def test_a_deleted_embedding_stays_deleted_whatever_was_being_written(make: Make) -> None:
    store = make(4)
    early = [await reserve(store, "a", 2.0), await reserve(store, "a", 3.0)]
    assert not await store.delete(key("a"))

    async with store.publish(early[0]) as embedding:
        assert value_of(embedding) == 2.0
        assert await get(store, "a") is None
        assert (store.stats().entries, store.stats().bytes) == (0, 2 * PAGE)
    assert (store.stats().entries, store.stats().bytes) == (0, PAGE)
    async with store.publish(early[1]) as embedding:
        assert value_of(embedding) == 3.0
        assert await get(store, "a") is None
    assert store.stats().bytes == 0


async def test_a_transient_slot_is_an_embedding_until_it_is_discarded(make: Make) -> None:
    store = make(1)
    slot = await store.reserve(key("a"), FACTS, SPECS, transient=True)
    slot.tensors["image_embedding"][...] = 2.0

    assert value_of(slot.as_embedding()) == 2.0
    assert await get(store, "a") is None
    with pytest.raises(Overloaded):
        await store.reserve(key("b"), FACTS, SPECS)


async def test_what_is_replaced_stays_valid_for_its_holders(make: Make) -> None:
    store = make(4)
    first, second = await reserve(store, "a", 1.0), await reserve(store, "a", 2.0)
    async with store.publish(first) as embedding:
        async with store.publish(second):
            pass

        assert (value_of(embedding), await get(store, "a")) == (1.0, 2.0)
        assert (store.stats().entries, store.stats().bytes) == (1, 2 * PAGE)
    assert (store.stats().entries, store.stats().bytes) == (1, PAGE)


async def test_a_second_look_counts_neither_as_a_hit_nor_as_a_miss(make: Make) -> None:
    store = make(4)
    for again in (False, True):
        with pytest.raises(EmbeddingNotFound):
            async with store.lease(key("a"), again=again):
                pass
    await put(store, "a")
    for again in (False, True):
        async with store.lease(key("a"), again=again):
            pass

    assert (store.stats().hits, store.stats().misses) == (1, 1)


async def test_an_embedding_may_have_several_tensors(make: Make) -> None:
    store = make(64)
    specs = (
        TensorSpec("a", np.dtype(np.float16), (3, 5)),
        TensorSpec("b", np.dtype(np.float32), (2, 7)),
    )
    slot = await store.reserve(key("x"), FACTS, specs)
    slot.tensors["a"][...] = 1
    slot.tensors["b"][...] = 2
    async with store.publish(slot) as embedding:
        assert {name: t.shape for name, t in embedding.tensors.items()} == {
            "a": (3, 5),
            "b": (2, 7),
        }
        assert (embedding.tensors["a"] == 1).all()
        assert (embedding.tensors["b"] == 2).all()


def writer() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_slot_that_may_still_be_written_is_not_used_again(make: Make) -> None:
    store = make(2)
    lost = await store.reserve(key("lost"), FACTS, SPECS)
    writers = [writer(), writer()]
    lost.late_writers.extend(writers)
    await store.discard(lost)
    await put(store, "a", 1.0)
    for name in "bcd":
        await put(store, name, 9.0)
    async with store.lease(key("d")) as embedding:
        lost.tensors["image_embedding"][...] = 7.0

        assert (embedding.tensors["image_embedding"] == 9.0).all()
        assert store.stats().quarantined_bytes == PAGE
        with pytest.raises(Overloaded):
            await reserve(store, "e")

        writers[0].set_result(None)
        await asyncio.sleep(0)
        assert store.stats().quarantined_bytes == PAGE
        writers[1].set_result(None)
        for _ in range(3):
            await asyncio.sleep(0)
        assert store.stats().quarantined_bytes == 0
        await put(store, "e", 5.0)

    assert await get(store, "e") == 5.0
    assert store.stats().bytes == 2 * PAGE


@pytest.mark.parametrize("given_up", [True, False])
@pytest.mark.parametrize("before", [True, False])
async def test_a_slot_whose_writers_have_ended_is_free(
    make: Make, given_up: bool, before: bool
) -> None:
    store = make(1)
    slot, writes = await store.reserve(key("a"), FACTS, SPECS), writer()
    slot.late_writers.append(writes)

    def end() -> None:
        writes.cancel() if given_up else writes.set_result(None)

    if before:
        end()
        await store.discard(slot)
    else:
        await store.discard(slot)
        end()
        for _ in range(3):
            await asyncio.sleep(0)

    assert store.stats().bytes == 0
    await put(store, "b")


async def test_what_is_in_use_at_the_end_stays_readable(make: Make) -> None:
    told = list[EmbeddingKey]()
    store = make(8, forgotten=told.append)
    await put(store, "a", 2.0)
    late, lost = await reserve(store, "b", 3.0), await reserve(store, "c")
    async with store.lease(key("a")) as embedding:
        await store.aclose()
        async with store.publish(late) as published:
            assert (value_of(embedding), value_of(published)) == (2.0, 3.0)
        await store.discard(lost)

    assert (store.stats().bytes, told) == (0, [])


# What is the memory store's own.


async def test_the_least_recently_used_is_evicted_when_the_bytes_are_full(make: Make) -> None:
    store = make(2)
    await put(store, "a")
    await put(store, "b")
    await get(store, "a")
    await put(store, "c")

    found = [await get(store, name) for name in "abc"]

    assert found == [1.0, None, 1.0]
    assert store.stats().evictions == 1
    assert store.stats().bytes <= 2 * PAGE


async def test_size_does_not_count_against_an_embedding_that_is_evicted(make: Make) -> None:
    store = make(4)
    large = (TensorSpec("image_embedding", np.dtype(np.float16), (4, 32, 32)),)
    await put(store, "small")
    async with store.publish(await store.reserve(key("large"), FACTS, large)):
        pass
    for name in "ab":
        await put(store, name)

    assert [await get(store, name) for name in ("small", "large", "a")] == [None, 0.0, 1.0]


async def test_a_tenant_over_its_quota_evicts_its_own(make: Make) -> None:
    store = make(8, quota={"small": 2 * PAGE}.get)
    for name in "abc":
        await put(store, name, tenant="large")
    for name in "abc":
        await put(store, name, tenant="small")

    assert [await get(store, name, "large") for name in "abc"] == [1.0] * 3
    assert [await get(store, name, "small") for name in "abc"] == [None, 1.0, 1.0]


async def test_a_quota_of_which_all_is_in_use_refuses(make: Make) -> None:
    store = make(8, quota={"small": PAGE}.get)
    store.check_room("small", SPECS)
    await put(store, "a", tenant="small")
    store.check_room("small", SPECS)  # the first can go
    async with store.lease(key("a", "small")):
        with pytest.raises(QuotaExceeded, match="in use"):
            store.check_room("small", SPECS)
        with pytest.raises(QuotaExceeded, match="in use"):
            await reserve(store, "b", tenant="small")
        store.check_room("large", SPECS)
        await put(store, "a", tenant="large")


async def test_nothing_is_durable_in_the_memory_of_one_process(make: Make) -> None:
    store = make(8)
    with pytest.raises(EmbeddingNotFound):
        async with store.lease(key("a"), durable=True):
            pass

    await put(store, "a")
    with pytest.raises(StoreUnavailable, match="no shared cache is configured"):
        async with store.lease(key("a"), durable=True):
            pass
    assert await get(store, "a") == 1.0


async def test_what_was_deleted_since_the_work_began_does_not_come_back(make: Make) -> None:
    store = make(8)
    before = await store.epoch(key("a"))
    await store.delete(key("a"))
    after = await store.epoch(key("a"))
    for since, found in ((before, None), (after, 1.0)):
        slot = await store.reserve(key("a"), FACTS, SPECS, since=since)
        slot.tensors["image_embedding"][...] = 1.0
        async with store.publish(slot) as embedding:
            assert embedding.revoked == (found is None)
        assert await get(store, "a") == found
    # Deletions of other keys and tenants change nothing.
    since = await store.epoch(key("b"))
    await store.delete(key("a"))
    await store.delete(key("b", "other"))
    slot = await store.reserve(key("b"), FACTS, SPECS, since=since)
    async with store.publish(slot) as embedding:
        assert not embedding.revoked


async def test_deletions_are_remembered_within_bounds(make: Make) -> None:
    store = make(8)
    for number in range(10_500):
        await store.delete(key(str(number)))

    # Work that began before what is not remembered any more counts as deleted.
    for since, revoked in ((499, True), (500, False)):
        slot = await store.reserve(key("another"), FACTS, SPECS, since=since)
        async with store.publish(slot) as embedding:
            assert embedding.revoked == revoked


async def test_a_publisher_may_say_when_it_expires(make: Make) -> None:
    clock = Clock()
    store = make(8, now=clock)
    async with store.publish(await reserve(store, "a"), expires_at=1010.5) as embedding:
        assert embedding.expires_at == 1010.5
    clock.now = 1010.4
    assert store.expire() == 0
    assert await get(store, "a") == 1.0
    clock.now = 1010.5
    assert await get(store, "a") is None


async def test_what_has_expired_is_removed_without_being_looked_up(make: Make) -> None:
    clock = Clock()
    store = make(8, now=clock)
    for name in "abcd":
        await put(store, name)
    clock.now += 30
    await put(store, "late")
    async with store.lease(key("a"), renew=True):
        pass
    async with store.lease(key("b")) as embedding:
        clock.now += 30
        assert store.expire(2) == 2
        assert store.expire() == 1
        assert store.expire() == 0
        assert (store.stats().entries, store.stats().evictions) == (2, 0)
        assert value_of(embedding) == 1.0
    assert store.stats().bytes == 2 * PAGE
    clock.now += 30
    assert store.expire() == 2
    assert store.stats().bytes == 0


async def test_what_has_expired_makes_room_first(make: Make) -> None:
    clock = Clock()
    store = make(2, now=clock)
    async with store.publish(await reserve(store, "a"), expires_at=1100.0):
        pass
    async with store.publish(await reserve(store, "b"), expires_at=1010.0):
        pass
    clock.now = 1020.0
    await put(store, "c")

    assert [await get(store, name) for name in "abc"] == [1.0, None, 1.0]
    assert store.stats().evictions == 0


async def test_every_end_of_being_visible_is_told_once(make: Make) -> None:
    clock, told = Clock(), list[EmbeddingKey]()
    store = make(2, now=clock, forgotten=told.append)

    def news() -> list[str]:
        names = [key.embedding_id for key in told]
        told.clear()
        return names

    await put(store, "evicted")
    await put(store, "looked up")
    assert news() == []
    await put(store, "expired")
    assert news() == ["evicted"]
    clock.now += 60
    assert await get(store, "looked up") is None
    assert news() == ["looked up"]
    store.expire()
    assert news() == ["expired"]
    await put(store, "a")
    assert (await store.delete(key("a")), await store.delete(key("a"))) == (True, False)
    assert news() == ["a"]
    await put(store, "b")
    async with store.lease(key("b")):
        clock.now += 60
        assert not await store.delete(key("b"))
        assert news() == ["b"]
    assert news() == []
    await put(store, "c")
    store.drop(key("c"))
    store.drop(key("c"))
    assert news() == ["c"]


async def test_what_is_replaced_is_told_before_the_new_is_visible(make: Make) -> None:
    seen = list[int]()
    store = make(4, forgotten=lambda key: seen.append(entries()))

    def entries() -> int:
        return store.stats().entries

    await put(store, "a", 1.0)
    await put(store, "a", 2.0)

    assert seen == [0]
    assert (entries(), await get(store, "a")) == (1, 2.0)


async def test_what_is_dropped_is_not_found_but_may_come_again(make: Make) -> None:
    store = make(4)
    store.drop(key("a"))
    await put(store, "a", 1.0)
    pending = await reserve(store, "a", 2.0)
    async with store.lease(key("a")) as embedding:
        store.drop(key("a"))

        assert await get(store, "a") is None
        assert value_of(embedding) == 1.0
    assert store.stats().bytes == PAGE
    async with store.publish(pending):
        assert await get(store, "a") == 2.0


async def test_an_embedding_is_listed_until_it_is_removed(make: Make) -> None:
    clock = Clock()
    store = make(4, now=clock)
    seen = [store.lists(key("a"))]
    slot = await reserve(store, "a")
    seen.append(store.lists(key("a")))
    async with store.publish(slot):
        seen.append(store.lists(key("a")))
    clock.now += 60
    seen.append(store.lists(key("a")))
    store.expire()
    seen.append(store.lists(key("a")))

    assert seen == [False, False, True, True, False]


async def test_nothing_is_left_of_what_is_gone(make: Make) -> None:
    clock = Clock()
    store = make(4, now=clock)
    for number in range(200):
        name, tenant = f"{number}", f"tenant {number}"
        revoked = [await reserve(store, name, tenant=tenant) for _ in range(2)]
        await store.delete(key(name, tenant))
        await store.discard(revoked[0])
        await store.discard(await reserve(store, name, tenant=tenant))
        async with store.publish(revoked[1]):
            await put(store, name, tenant=tenant)
            await put(store, name, tenant=tenant)
        await store.discard(await store.reserve(key(name, tenant), FACTS, SPECS, transient=True))
        async with store.lease(key(name, tenant), renew=True):
            store.drop(key(name, tenant))
        await put(store, name, tenant=tenant)
        clock.now += number % 3 * 30
    clock.now += 60
    store.expire()

    assert (store.stats().entries, store.stats().bytes) == (0, 0)
    # The names of what was deleted are kept for a while, a bounded number of them.
    store._pending._deletions.clear()
    left = list(reachable(store))
    assert not any(isinstance(thing, Slot | Entry | Usage | EmbeddingKey) for thing in left)
    assert all(len(thing) < 100 for thing in left if isinstance(thing, Ranking))


def reachable(root: MemoryStore) -> Iterator[Any]:
    """Everything that a store keeps, other than code."""
    seen, found = set[int](), list(vars(root).values())
    while found:
        thing = found.pop()
        if id(thing) in seen or isinstance(thing, type) or callable(thing):
            continue
        seen.add(id(thing))
        yield thing
        found.extend(gc.get_referents(thing))


async def test_memory_that_was_used_comes_back_as_zeros_with_a_second_size(make: Make) -> None:
    """Free slots of one size keep no pages, which would be over the capacity with the other's."""
    store = make(4)
    slots = [await reserve(store, name, 7.0) for name in "abc"]
    for slot in slots:
        await store.discard(slot)
    big = (TensorSpec("x", np.dtype(np.uint8), (2 * PAGE,)),)
    await store.discard(await store.reserve(key("big"), FACTS, big))
    again = [await store.reserve(key(name), FACTS, SPECS) for name in "abcd"]

    assert {slot.index for slot in again} == {0, 1, 2, 3}
    assert all((slot.tensors["image_embedding"] == 0).all() for slot in again)
    again[0].tensors["image_embedding"][...] = 7.0
    await store.discard(again[0])
    last = await store.reserve(key("e"), FACTS, SPECS)
    assert last.index == again[0].index
    assert (last.tensors["image_embedding"] == 0).all()


class CountedMemory:
    """Knows which slots, of a page each, have memory behind them."""

    def __init__(self, slots: int, *, committed: bool) -> None:
        self.nbytes = slots * PAGE
        self.array = np.zeros(self.nbytes, dtype=np.uint8)
        self.backed = set(range(slots)) if committed else set[int]()
        self.full = False

    def commit(self, offset: int, nbytes: int) -> None:
        if self.full:
            raise MemoryExhausted("full")
        assert self.backed.isdisjoint(pages(offset, nbytes))
        self.backed |= pages(offset, nbytes)

    def release(self, offset: int, nbytes: int) -> None:
        assert self.backed >= pages(offset, nbytes)
        self.backed -= pages(offset, nbytes)


def pages(offset: int, nbytes: int) -> set[int]:
    assert nbytes > 0
    return set(range(offset // PAGE, (offset + nbytes) // PAGE))


@given(
    committed=st.booleans(),
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "take", "fail", "free", "hollow", "all"]), st.integers())
    ),
)
def test_every_slot_of_an_arena_that_is_taken_has_memory(
    committed: bool, steps: list[tuple[str, int]]
) -> None:
    memory = CountedMemory(5, committed=committed)
    arena, taken = Arena(memory, PAGE, committed=committed), list[int]()
    for what, number in steps:
        memory.full = what == "fail"
        if what in ("take", "fail"):
            with suppress(MemoryExhausted):
                index = arena.allocate()
                assert (index is None) == (len(taken) == 5)
                taken += [] if index is None else [index]
        elif what == "all":
            arena.release_free_pages()
            assert memory.backed == set(taken)
        elif taken:
            arena.free(index := taken.pop(number % len(taken)))
            if what == "hollow":
                arena.release_pages(index)
                assert index not in memory.backed
        assert len(set(taken)) == len(taken)
        assert memory.backed >= set(taken)
    memory.full = False
    left = [arena.allocate() for _ in range(6 - len(taken))]
    assert {*taken, *left} == {0, 1, 2, 3, 4, None}
