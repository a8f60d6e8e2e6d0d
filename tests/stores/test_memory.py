"""The contract of `EmbeddingStore`, run over every store, and what is the memory store's own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import pytest
from samserve.errors import EmbeddingNotFound, Overloaded
from samserve.memory.base import AnonymousMemory
from samserve.memory.shared import SharedMemory
from samserve.stores.memory import MemoryStore
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec

PAGE = 4096
SPECS = (TensorSpec("image_embedding", np.dtype(np.float16), (2, 32, 32)),)
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")


OpenStore = Callable[..., MemoryStore]


@pytest.fixture(params=["anonymous", "shared"])
def open_store(request: pytest.FixtureRequest) -> Iterator[OpenStore]:
    """Makes stores in either kind of memory."""
    if request.param == "anonymous":
        yield partial(MemoryStore, allocate=AnonymousMemory)
        return
    shared = SharedMemory()
    yield partial(MemoryStore, allocate=shared.create)
    shared.close()


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


async def put(store: MemoryStore, name: str, value: float = 1.0, tenant: str = "default") -> None:
    slot = await store.reserve(key(name, tenant), FACTS, SPECS)
    slot.tensors["image_embedding"][...] = value
    await store.publish(slot)


async def get(store: MemoryStore, name: str, tenant: str = "default") -> float | None:
    try:
        async with store.lease(key(name, tenant)) as embedding:
            return float(embedding.tensors["image_embedding"][1, 31, 31])
    except EmbeddingNotFound:
        return None


async def test_what_is_published_is_found_with_its_facts(open_store: OpenStore) -> None:
    store = open_store(8 * PAGE, ttl_s=60)
    await put(store, "a", 2.5)

    async with store.lease(key("a")) as embedding:
        assert embedding.facts == FACTS
        assert (embedding.tensors["image_embedding"] == 2.5).all()


async def test_a_reserved_slot_is_not_visible_before_it_is_published(open_store: OpenStore) -> None:
    store = open_store(8 * PAGE, ttl_s=60)
    slot = await store.reserve(key("a"), FACTS, SPECS)

    assert await get(store, "a") is None
    await store.publish(slot)
    assert await get(store, "a") is not None


async def test_embeddings_of_one_tenant_are_not_found_by_another(open_store: OpenStore) -> None:
    store = open_store(8 * PAGE, ttl_s=60)
    await put(store, "a", tenant="one")

    assert await get(store, "a", tenant="two") is None
    assert not await store.delete(key("a", "two"))
    assert await get(store, "a", tenant="one") == 1.0


async def test_embeddings_are_immutable(open_store: OpenStore) -> None:
    store = open_store(8 * PAGE, ttl_s=60)
    await put(store, "a")

    async with store.lease(key("a")) as embedding:
        with pytest.raises(ValueError, match="read-only"):
            embedding.tensors["image_embedding"][0] = 0


async def test_the_least_recently_used_is_evicted_when_the_bytes_are_full(
    open_store: OpenStore,
) -> None:
    store = open_store(2 * PAGE, ttl_s=60)
    await put(store, "a")
    await put(store, "b")
    await get(store, "a")
    await put(store, "c")

    found = [await get(store, name) for name in "abc"]

    assert found == [1.0, None, 1.0]
    assert store.stats().evictions == 1
    assert store.stats().bytes <= 2 * PAGE


async def test_a_leased_embedding_is_neither_evicted_nor_overwritten(open_store: OpenStore) -> None:
    store = open_store(2 * PAGE, ttl_s=60)
    await put(store, "a", 1.0)
    async with store.lease(key("a")) as embedding:
        for name in "bcdef":
            await put(store, name, 9.0)

        assert (embedding.tensors["image_embedding"] == 1.0).all()
    assert await get(store, "a") == 1.0


async def test_a_store_full_of_leases_refuses_instead_of_growing(open_store: OpenStore) -> None:
    store = open_store(PAGE, ttl_s=60)
    await put(store, "a")

    async with store.lease(key("a")):
        with pytest.raises(Overloaded, match="capacity"):
            await store.reserve(key("b"), FACTS, SPECS)


async def test_an_embedding_larger_than_the_store_is_refused(open_store: OpenStore) -> None:
    store = open_store(100, ttl_s=60)

    with pytest.raises(Overloaded):
        await store.reserve(key("a"), FACTS, SPECS)


async def test_an_expired_embedding_is_not_found_and_its_bytes_are_free(
    open_store: OpenStore,
) -> None:
    clock = Clock()
    store = open_store(8 * PAGE, ttl_s=60, now=clock)
    await put(store, "a")
    clock.now += 60

    assert await get(store, "a") is None
    assert store.stats().bytes == 0


async def test_only_a_renewing_lease_extends_the_time_to_live(open_store: OpenStore) -> None:
    clock = Clock()
    store = open_store(8 * PAGE, ttl_s=60, now=clock)
    await put(store, "a")
    await put(store, "b")
    clock.now += 50
    async with store.lease(key("a"), renew=True) as renewed, store.lease(key("b")) as kept:
        assert (renewed.expires_at, kept.expires_at) == (1110.0, 1060.0)
    clock.now += 20

    assert await get(store, "a") == 1.0
    assert await get(store, "b") is None


async def test_a_deleted_embedding_is_gone_at_once_but_its_leases_stay_valid(
    open_store: OpenStore,
) -> None:
    store = open_store(2 * PAGE, ttl_s=60)
    await put(store, "a", 1.0)
    async with store.lease(key("a")) as embedding:
        assert await store.delete(key("a"))
        assert await get(store, "a") is None
        await put(store, "b", 9.0)
        await put(store, "c", 9.0)

        assert (embedding.tensors["image_embedding"] == 1.0).all()
        assert store.stats().bytes == 2 * PAGE


async def test_deleting_twice_says_that_there_was_nothing(open_store: OpenStore) -> None:
    store = open_store(8 * PAGE, ttl_s=60)
    await put(store, "a")

    assert [await store.delete(key("a")), await store.delete(key("a"))] == [True, False]


async def test_discarded_slots_give_their_bytes_back(open_store: OpenStore) -> None:
    store = open_store(PAGE, ttl_s=60)
    for _ in range(10):
        await store.discard(await store.reserve(key("a"), FACTS, SPECS))

    assert store.stats().bytes == 0


async def test_publishing_again_replaces(open_store: OpenStore) -> None:
    store = open_store(4 * PAGE, ttl_s=60)
    await put(store, "a", 1.0)
    await put(store, "a", 2.0)

    assert await get(store, "a") == 2.0
    assert store.stats().bytes == PAGE


async def test_slots_of_several_sizes_share_one_capacity(open_store: OpenStore) -> None:
    store = open_store(4 * PAGE, ttl_s=60)
    big = (TensorSpec("x", np.dtype(np.float32), (3 * 1024,)),)
    await put(store, "a")
    await put(store, "b")
    slot = await store.reserve(key("big"), FACTS, big)
    await store.publish(slot)

    found = [await get(store, name) for name in "ab"]

    assert found == [None, 1.0]
    assert store.stats().bytes == 4 * PAGE


async def test_an_embedding_may_have_several_tensors(open_store: OpenStore) -> None:
    store = open_store(64 * PAGE, ttl_s=60)
    specs = (
        TensorSpec("a", np.dtype(np.float16), (3, 5)),
        TensorSpec("b", np.dtype(np.float32), (2, 7)),
    )
    slot = await store.reserve(key("x"), FACTS, specs)
    slot.tensors["a"][...] = 1
    slot.tensors["b"][...] = 2
    await store.publish(slot)

    async with store.lease(key("x")) as embedding:
        assert {name: t.shape for name, t in embedding.tensors.items()} == {
            "a": (3, 5),
            "b": (2, 7),
        }
        assert (embedding.tensors["a"] == 1).all()
        assert (embedding.tensors["b"] == 2).all()


def writer() -> asyncio.Future[None]:
    return asyncio.get_running_loop().create_future()


async def test_a_slot_that_may_still_be_written_is_not_used_again(open_store: OpenStore) -> None:
    store = open_store(2 * PAGE, ttl_s=60)
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
            await store.reserve(key("e"), FACTS, SPECS)

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


async def test_a_slot_whose_writers_have_ended_is_used_at_once(open_store: OpenStore) -> None:
    store = open_store(PAGE, ttl_s=60)
    slot = await store.reserve(key("a"), FACTS, SPECS)
    ended = writer()
    ended.set_result(None)
    slot.late_writers.append(ended)
    await store.discard(slot)

    assert store.stats().bytes == 0
    await put(store, "b")


async def test_writers_that_are_given_up_end_the_quarantine(open_store: OpenStore) -> None:
    store = open_store(PAGE, ttl_s=60)
    slot = await store.reserve(key("a"), FACTS, SPECS)
    given_up = writer()
    slot.late_writers.append(given_up)
    await store.discard(slot)
    given_up.cancel()
    for _ in range(3):
        await asyncio.sleep(0)

    assert store.stats().bytes == 0
