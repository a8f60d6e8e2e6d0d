"""The choice of the embedding to evict, compared with a simple reference implementation."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
)
from samserve.cache.local.cache import LocalCache
from samserve.cache.local.eviction import Entry, Ranking, TenantUsage
from samserve.errors import EmbeddingNotFound, Overloaded, QuotaExceeded
from samserve.memory.slot import Slot
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, Size, TensorSpec

from tests.support.examples import examples

PAGE = 4096
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")


@dataclass
class RefEntry:
    """An entry in the reference."""

    nbytes: int = PAGE
    expires_at: float = float("inf")
    leases: int = 0


@dataclass
class RefUsage:
    """A tenant in the reference: all of its bytes, and its entries, least recently used first."""

    used: int = 0
    entries: OrderedDict[str, RefEntry] = field(default_factory=OrderedDict)

    def oldest_idle(self) -> str | None:
        return next((name for name, kept in self.entries.items() if not kept.leases), None)


def reference_candidate(usages: dict[str, RefUsage], tenant: str) -> EmbeddingKey | None:
    """Return the entry to evict: sort all tenants, and check them one after the other."""
    own = usages[tenant].used if tenant in usages else 0
    by_size = sorted(usages.items(), key=lambda item: (item[1].used, item[0] == tenant))
    for name, ref_usage in reversed(by_size):
        if ref_usage.used < own:
            break
        candidate = ref_usage.oldest_idle()
        if candidate is not None:
            return EmbeddingKey(name, candidate)
    return None


def agrees(chosen: EmbeddingKey | None, usages: dict[str, RefUsage], tenant: str) -> bool:
    """Return whether the reference chooses the same entry, or one of a tenant that uses as much."""
    expected = reference_candidate(usages, tenant)
    if chosen is None or expected is None or tenant in (chosen.tenant, expected.tenant):
        return chosen == expected
    ref_usage = usages[chosen.tenant]
    same = ref_usage.used == usages[expected.tenant].used
    return same and chosen.embedding_id == ref_usage.oldest_idle()


def entry(tenant: str, name: str) -> Entry:
    return Entry(EmbeddingKey(tenant, name), FACTS, {}, index=0, nbytes=PAGE, expires_at=0)


TENANTS = ("ants", "bees", "crabs", "deer")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ("add entry", "remove entry", "touch", "lease", "end lease", "add bytes", "free bytes")
        ),
        st.integers(0, 30),
    ),
    max_size=60,
)


class Both:
    """Applies each step to `TenantUsage` and to the reference; *number* selects the argument."""

    def __init__(self) -> None:
        self.usage = TenantUsage()
        self.usages: dict[str, RefUsage] = {}
        self.entries: list[Entry] = []
        self.leased: list[Entry] = []
        self.charged: list[str] = []
        self.created = 0

    def step(self, action: str, number: int) -> None:
        choices: dict[str, Sequence[Any]] = {
            "add entry": TENANTS,
            "add bytes": TENANTS,
            "end lease": self.leased,
            "free bytes": self.charged,
        }
        chosen = choices.get(action, self.entries)
        if chosen:
            getattr(self, action.replace(" ", "_"))(chosen[number % len(chosen)])

    def add_bytes(self, tenant: str) -> None:
        self.usage.add_bytes(tenant, PAGE)
        self.usages.setdefault(tenant, RefUsage()).used += PAGE
        self.charged.append(tenant)

    def free_bytes(self, tenant: str) -> None:
        self.usage.remove_bytes(tenant, PAGE)
        self.usages[tenant].used -= PAGE
        if not self.usages[tenant].used:
            del self.usages[tenant]
        self.charged.remove(tenant)

    def add_entry(self, tenant: str) -> None:
        """Charge bytes, and index an entry for them."""
        self.add_bytes(tenant)
        self.charged.pop()
        self.created += 1
        created = entry(tenant, str(self.created))
        self.usage.add_entry(created)
        self.usages[tenant].entries[created.key.embedding_id] = RefEntry()
        self.entries.append(created)

    def remove_entry(self, removed: Entry) -> None:
        """Remove an entry; its bytes stay charged."""
        self.usage.remove_entry(removed)
        del self.usages[removed.key.tenant].entries[removed.key.embedding_id]
        self.entries.remove(removed)
        self.charged.append(removed.key.tenant)

    def touch(self, used: Entry) -> None:
        self.usage.touch(used)
        self.usages[used.key.tenant].entries.move_to_end(used.key.embedding_id)

    def lease(self, leased: Entry) -> None:
        self.usage.add_lease(leased)
        self.usages[leased.key.tenant].entries[leased.key.embedding_id].leases += 1
        self.leased.append(leased)

    def end_lease(self, leased: Entry) -> None:
        self.usage.remove_lease(leased)
        self.leased.remove(leased)
        if leased.indexed:
            self.usages[leased.key.tenant].entries[leased.key.embedding_id].leases -= 1


@examples(500)
@given(steps=STEPS)
def test_the_candidate_is_that_of_the_reference(steps: Sequence[tuple[str, int]]) -> None:
    both = Both()
    for action, number in steps:
        both.step(action, number)

        assert both.usage.used == sum(ref_usage.used for ref_usage in both.usages.values())
        assert {kept.key for kept in both.usage} == {kept.key for kept in both.entries}
        assert both.usage.indexed == len(both.entries)
        for tenant in (*TENANTS, "unknown"):
            candidate = both.usage.eviction_candidate(tenant)
            key = None if candidate is None else candidate.key
            assert agrees(key, both.usages, tenant)


def add_entries(usage: TenantUsage, tenants: Iterable[str]) -> list[Entry]:
    """Add an entry for each tenant."""
    entries = [entry(tenant, str(number)) for number, tenant in enumerate(tenants)]
    for each in entries:
        usage.add_bytes(each.key.tenant, PAGE)
        usage.add_entry(each)
    return entries


def evicted_tenant(usage: TenantUsage, tenant: str) -> str | None:
    candidate = usage.eviction_candidate(tenant)
    return None if candidate is None else candidate.key.tenant


def test_of_tenants_with_equal_usage_the_requesting_one_is_evicted_first() -> None:
    usage = TenantUsage()
    add_entries(usage, ["ants", "bees", "crabs"])

    assert [evicted_tenant(usage, tenant) for tenant in ("ants", "bees", "crabs")] == [
        "ants",
        "bees",
        "crabs",
    ]


def test_of_other_tenants_with_equal_usage_the_least_recently_used_is_evicted_first() -> None:
    usage = TenantUsage()
    ants, bees, crabs = add_entries(usage, ["ants", "bees", "crabs"])
    order = [evicted_tenant(usage, "new")]
    for used in (ants, bees, ants, crabs):
        usage.add_lease(used)
        usage.remove_lease(used)
        order.append(evicted_tenant(usage, "new"))

    assert order == ["ants", "bees", "crabs", "crabs", "bees"]


def test_no_tenant_loses_an_entry_to_one_that_uses_more() -> None:
    usage = TenantUsage()
    ants = add_entries(usage, ["ants", "ants", "bees"])[:2]
    for leased in ants:
        usage.add_lease(leased)

    assert evicted_tenant(usage, "ants") is None
    assert evicted_tenant(usage, "bees") == "bees"
    assert evicted_tenant(usage, "crabs") == "bees"


@examples(300)
@given(
    steps=st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 3), st.booleans())),
    reads=st.booleans(),
)
def test_a_ranking_returns_the_lowest_rank_and_stays_small(
    steps: Sequence[tuple[int, int, bool]], reads: bool
) -> None:
    ranking, reference = Ranking[int](), dict[int, int]()
    for rank, member, puts in steps:
        reference.pop(member, None)
        if puts:
            ranking.put(rank, member)
            reference[member] = rank
        else:
            ranking.discard(member)
        if reads:
            # Of equal ranks, the one that was inserted first.
            first = min(reference, key=reference.__getitem__, default=None)
            assert ranking.first() == (None if first is None else (reference[first], first))
        assert len(ranking) <= 2 * len(reference) + 40


@pytest.mark.parametrize("step", [1, -1])
def test_outdated_ranks_are_removed(step: int) -> None:
    ranking = Ranking[str]()
    longest = 0
    for rank in range(0, 10_000 * step, step):
        ranking.put(rank, "member")
        longest = max(longest, len(ranking))
    ranking.discard("member")

    assert longest < 100
    assert ranking.first() is None
    assert len(ranking) == 0


CAPACITY, QUOTA, TTL = 6 * PAGE, 4 * PAGE, 10
Lease = AbstractAsyncContextManager[Embedding]


class CacheAgainstReference(RuleBasedStateMachine):
    """A `LocalCache` evicts the same entries as the reference, and has the same counts.

    Where the reference allows a choice, it follows the cache and checks that the choice is valid.
    """

    slots = Bundle("slots")
    leases = Bundle("leases")
    tenants = st.sampled_from(TENANTS[:3])
    names = st.sampled_from("xyz")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.cache = LocalCache(
            CAPACITY,
            TTL,
            quota={"crabs": QUOTA}.get,
            now=lambda: self.now,
            on_removed=self.on_removed,
        )
        self.usages: dict[str, RefUsage] = {}
        self.revoked: list[Slot] = []
        self.pending: list[Slot] = []
        # Leased entries, which may have been removed from the index since.
        self.leased: dict[int, tuple[EmbeddingKey, RefEntry]] = {}
        self.reserving: tuple[str, int] | None = None

    def teardown(self) -> None:
        self.runner.close()

    def on_removed(self, key: EmbeddingKey) -> None:
        kept = self.usages[key.tenant].entries[key.embedding_id]
        if self.reserving is not None and kept.expires_at > self.now:
            assert self.may_be_evicted(key, *self.reserving)
        self.unindex(key)

    def may_be_evicted(self, key: EmbeddingKey, tenant: str, nbytes: int) -> bool:
        """Return whether a key is the one to evict when a tenant reserves *nbytes*."""
        own = self.usages.get(tenant, RefUsage())
        if tenant == "crabs" and own.used + nbytes > QUOTA:
            return key == EmbeddingKey(tenant, own.oldest_idle() or "")
        return self.used + nbytes > CAPACITY and agrees(key, self.usages, tenant)

    @property
    def used(self) -> int:
        return sum(ref_usage.used for ref_usage in self.usages.values())

    def unindex(self, key: EmbeddingKey) -> None:
        kept = self.usages[key.tenant].entries.pop(key.embedding_id)
        if not kept.leases:
            self.free(key.tenant, kept.nbytes)

    def free(self, tenant: str, nbytes: int) -> None:
        self.usages[tenant].used -= nbytes
        if not self.usages[tenant].used:
            del self.usages[tenant]

    @rule(
        target=slots, tenant=tenants, name=names, pages=st.integers(1, 3), transient=st.booleans()
    )
    def reserve(self, tenant: str, name: str, pages: int, transient: bool) -> Any:
        spec = (TensorSpec("t", np.dtype(np.uint8), (pages * PAGE,)),)
        key, self.reserving = EmbeddingKey(tenant, name), (tenant, pages * PAGE)
        try:
            slot = self.runner.run(self.cache.reserve(key, FACTS, spec, transient=transient))
        except Overloaded as error:
            self.check_rejection(error, tenant, pages * PAGE)
            return multiple()
        finally:
            self.reserving = None
        self.usages.setdefault(tenant, RefUsage()).used += pages * PAGE
        if not transient:
            self.pending.append(slot)
        return slot

    def check_rejection(self, error: Overloaded, tenant: str, nbytes: int) -> None:
        own = self.usages.get(tenant, RefUsage())
        over_quota = tenant == "crabs" and own.used + nbytes > QUOTA
        assert isinstance(error, QuotaExceeded) == over_quota
        if over_quota:
            assert own.oldest_idle() is None
        else:
            assert self.used + nbytes > CAPACITY
            assert reference_candidate(self.usages, tenant) is None

    @rule(target=leases, slot=consumes(slots))
    def publish(self, slot: Slot) -> Lease:
        lease = self.cache.publish(slot)
        assert self.runner.run(lease.__aenter__()).revoked == (slot not in self.pending)
        kept = RefEntry(slot.nbytes, self.now + TTL, leases=1)
        if slot in self.pending:
            self.usages[slot.key.tenant].entries[slot.key.embedding_id] = kept
            self.pending.remove(slot)
        self.leased[id(lease)] = slot.key, kept
        return lease

    @rule(slot=consumes(slots))
    def discard(self, slot: Slot) -> None:
        self.runner.run(self.cache.discard(slot))
        self.free(slot.key.tenant, slot.nbytes)
        if slot in self.pending:
            self.pending.remove(slot)

    @rule(target=leases, tenant=tenants, name=names, renew=st.booleans())
    def lease(self, tenant: str, name: str, renew: bool) -> Any:
        key = EmbeddingKey(tenant, name)
        kept = self.usages.get(tenant, RefUsage()).entries.get(name)
        found = kept is not None and kept.expires_at > self.now
        lease = self.cache.lease(key, renew=renew)
        try:
            self.runner.run(lease.__aenter__())
        except EmbeddingNotFound:
            assert not found
            return multiple()
        assert found
        assert kept is not None
        kept.leases += 1
        if renew:
            kept.expires_at = self.now + TTL
        self.usages[tenant].entries.move_to_end(name)
        self.leased[id(lease)] = key, kept
        return lease

    @rule(lease=consumes(leases))
    def end_lease(self, lease: Lease) -> None:
        self.runner.run(lease.__aexit__(None, None, None))
        key, kept = self.leased.pop(id(lease))
        kept.leases -= 1
        indexed = self.usages[key.tenant].entries.get(key.embedding_id) is kept
        if not indexed and not kept.leases:
            self.free(key.tenant, kept.nbytes)

    @rule(tenant=tenants, name=names)
    def delete(self, tenant: str, name: str) -> None:
        key = EmbeddingKey(tenant, name)
        kept = self.usages.get(tenant, RefUsage()).entries.get(name)
        found = kept is not None and kept.expires_at > self.now
        assert self.runner.run(self.cache.delete(key)) == found
        self.pending = [slot for slot in self.pending if slot.key != key]

    @rule(tenant=tenants, name=names)
    def remove(self, tenant: str, name: str) -> None:
        self.cache.remove(EmbeddingKey(tenant, name))
        assert name not in self.usages.get(tenant, RefUsage()).entries

    @rule(seconds=st.integers(1, TTL), expires=st.booleans())
    def wait(self, seconds: int, expires: bool) -> None:
        self.now += seconds
        if not expires:
            return
        self.cache.expire()
        kept = [kept for ref_usage in self.usages.values() for kept in ref_usage.entries.values()]
        assert all(each.expires_at > self.now for each in kept)

    @invariant()
    def counts_match_the_reference(self) -> None:
        stats = self.cache.stats()
        assert stats.bytes == self.used <= CAPACITY
        assert stats.entries == sum(len(ref_usage.entries) for ref_usage in self.usages.values())


TestCacheAgainstReference = CacheAgainstReference.TestCase
TestCacheAgainstReference.settings = examples(150, stateful_step_count=40)
