"""Who has to give when a store is full, against the plain way to say it."""

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
from samserve.errors import EmbeddingNotFound, Overloaded, QuotaExceeded
from samserve.memory.slot import Slot
from samserve.stores.local.eviction import Entry, Ranking, TenantUsage
from samserve.stores.local.store import MemoryStore
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, Size, TensorSpec

from tests.support.examples import examples

PAGE = 4096
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")


@dataclass
class Kept:
    """What the plain way knows of an entry."""

    nbytes: int = PAGE
    expires_at: float = float("inf")
    leases: int = 0


@dataclass
class Holding:
    """What the plain way knows of a tenant: all of its bytes, and its entries, oldest use first."""

    used: int = 0
    entries: OrderedDict[str, Kept] = field(default_factory=OrderedDict)

    def oldest_idle(self) -> str | None:
        return next((name for name, kept in self.entries.items() if not kept.leases), None)


def plain_victim(holdings: dict[str, Holding], tenant: str) -> EmbeddingKey | None:
    """Sort all tenants, and look at one after the other."""
    mine = holdings[tenant].used if tenant in holdings else 0
    by_size = sorted(holdings.items(), key=lambda item: (item[1].used, item[0] == tenant))
    for name, holding in reversed(by_size):
        if holding.used < mine:
            break
        victim = holding.oldest_idle()
        if victim is not None:
            return EmbeddingKey(name, victim)
    return None


def agrees(chosen: EmbeddingKey | None, holdings: dict[str, Holding], tenant: str) -> bool:
    """Tell whether the plain way chooses the same, or another's who holds exactly as much."""
    expected = plain_victim(holdings, tenant)
    if chosen is None or expected is None or tenant in (chosen.tenant, expected.tenant):
        return chosen == expected
    holding = holdings[chosen.tenant]
    same = holding.used == holdings[expected.tenant].used
    return same and chosen.embedding_id == holding.oldest_idle()


def entry(tenant: str, name: str) -> Entry:
    return Entry(EmbeddingKey(tenant, name), FACTS, {}, index=0, nbytes=PAGE, expires_at=0)


TENANTS = ("ants", "bees", "crabs", "deer")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(("list", "unlist", "touch", "hold", "let go", "take", "give back")),
        st.integers(0, 30),
    ),
    max_size=60,
)


class Both:
    """Does the same to usage and to the plain way; *number* chooses among what can be chosen."""

    def __init__(self) -> None:
        self.usage = TenantUsage()
        self.holdings: dict[str, Holding] = {}
        self.entries: list[Entry] = []
        self.leased: list[Entry] = []
        self.taken: list[str] = []
        self.made = 0

    def step(self, what: str, number: int) -> None:
        choices: dict[str, Sequence[Any]] = {
            "list": TENANTS,
            "take": TENANTS,
            "let go": self.leased,
            "give back": self.taken,
        }
        chosen = choices.get(what, self.entries)
        if chosen:
            getattr(self, what.replace(" ", "_"))(chosen[number % len(chosen)])

    def take(self, tenant: str) -> None:
        self.usage.take(tenant, PAGE)
        self.holdings.setdefault(tenant, Holding()).used += PAGE
        self.taken.append(tenant)

    def give_back(self, tenant: str) -> None:
        self.usage.give_back(tenant, PAGE)
        self.holdings[tenant].used -= PAGE
        if not self.holdings[tenant].used:
            del self.holdings[tenant]
        self.taken.remove(tenant)

    def list(self, tenant: str) -> None:
        """List an entry whose bytes are taken for it."""
        self.take(tenant)
        self.taken.pop()
        self.made += 1
        made = entry(tenant, str(self.made))
        self.usage.list_entry(made)
        self.holdings[tenant].entries[made.key.embedding_id] = Kept()
        self.entries.append(made)

    def unlist(self, gone: Entry) -> None:
        """Its bytes are still taken."""
        self.usage.unlist(gone)
        del self.holdings[gone.key.tenant].entries[gone.key.embedding_id]
        self.entries.remove(gone)
        self.taken.append(gone.key.tenant)

    def touch(self, used: Entry) -> None:
        self.usage.touch(used)
        self.holdings[used.key.tenant].entries.move_to_end(used.key.embedding_id)

    def hold(self, leased: Entry) -> None:
        self.usage.hold(leased)
        self.holdings[leased.key.tenant].entries[leased.key.embedding_id].leases += 1
        self.leased.append(leased)

    def let_go(self, leased: Entry) -> None:
        self.usage.let_go(leased)
        self.leased.remove(leased)
        if leased.listed:
            self.holdings[leased.key.tenant].entries[leased.key.embedding_id].leases -= 1


@examples(500)
@given(steps=STEPS)
def test_the_victim_is_whom_the_plain_way_chooses(steps: Sequence[tuple[str, int]]) -> None:
    both = Both()
    for what, number in steps:
        both.step(what, number)

        assert both.usage.used == sum(holding.used for holding in both.holdings.values())
        assert {kept.key for kept in both.usage} == {kept.key for kept in both.entries}
        assert both.usage.listed == len(both.entries)
        for tenant in (*TENANTS, "nobody"):
            victim = both.usage.eviction_candidate(tenant)
            key = None if victim is None else victim.key
            assert agrees(key, both.holdings, tenant)


def listed(usage: TenantUsage, tenants: Iterable[str]) -> list[Entry]:
    """List an entry of each."""
    entries = [entry(tenant, str(number)) for number, tenant in enumerate(tenants)]
    for made in entries:
        usage.take(made.key.tenant, PAGE)
        usage.list_entry(made)
    return entries


def victim_of(usage: TenantUsage, tenant: str) -> str | None:
    victim = usage.eviction_candidate(tenant)
    return None if victim is None else victim.key.tenant


def test_of_those_who_hold_as_much_who_asks_gives_first() -> None:
    usage = TenantUsage()
    listed(usage, ["ants", "bees", "crabs"])

    assert [victim_of(usage, tenant) for tenant in ("ants", "bees", "crabs")] == [
        "ants",
        "bees",
        "crabs",
    ]


def test_of_others_who_hold_as_much_the_longest_unused_gives_first() -> None:
    usage = TenantUsage()
    ants, bees, crabs = listed(usage, ["ants", "bees", "crabs"])
    order = [victim_of(usage, "new")]
    for used in (ants, bees, ants, crabs):
        usage.hold(used)
        usage.let_go(used)
        order.append(victim_of(usage, "new"))

    assert order == ["ants", "bees", "crabs", "crabs", "bees"]


def test_nobody_gives_to_one_who_holds_more() -> None:
    usage = TenantUsage()
    mine = listed(usage, ["ants", "ants", "bees"])[:2]
    for leased in mine:
        usage.hold(leased)

    assert victim_of(usage, "ants") is None
    assert victim_of(usage, "bees") == "bees"
    assert victim_of(usage, "crabs") == "bees"


@examples(300)
@given(
    steps=st.lists(st.tuples(st.integers(-100, 100), st.integers(0, 3), st.booleans())),
    looks=st.booleans(),
)
def test_a_ranking_finds_the_lowest_and_stays_small(
    steps: Sequence[tuple[int, int, bool]], looks: bool
) -> None:
    ranking, plain = Ranking[int](), dict[int, int]()
    for rank, member, puts in steps:
        plain.pop(member, None)
        if puts:
            ranking.put(rank, member)
            plain[member] = rank
        else:
            ranking.discard(member)
        if looks:
            # Of equal ranks the one that came first.
            first = min(plain, key=plain.__getitem__, default=None)
            assert ranking.first() == (None if first is None else (plain[first], first))
        assert len(ranking) <= 2 * len(plain) + 40


@pytest.mark.parametrize("step", [1, -1])
def test_ranks_that_are_left_behind_are_cleaned_up(step: int) -> None:
    ranking = Ranking[str]()
    longest = 0
    for rank in range(0, 10_000 * step, step):
        ranking.put(rank, "moves on")
        longest = max(longest, len(ranking))
    ranking.discard("moves on")

    assert longest < 100
    assert ranking.first() is None
    assert len(ranking) == 0


CAPACITY, QUOTA, TTL = 6 * PAGE, 4 * PAGE, 10
Lease = AbstractAsyncContextManager[Embedding]


class StoreAgainstThePlainWay(RuleBasedStateMachine):
    """A `MemoryStore` evicts what the plain way would, and counts what it counts.

    The plain way follows the store where it has a choice, and checks that it had one.
    """

    slots = Bundle("slots")
    leases = Bundle("leases")
    tenants = st.sampled_from(TENANTS[:3])
    names = st.sampled_from("xyz")

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.now = 0.0
        self.store = MemoryStore(
            CAPACITY,
            TTL,
            quota={"crabs": QUOTA}.get,
            now=lambda: self.now,
            forgotten=self.forgotten,
        )
        self.holdings: dict[str, Holding] = {}
        self.revoked: list[Slot] = []
        self.pending: list[Slot] = []
        # Leases by the entry, which is unlisted if it is not found in the holdings.
        self.held: dict[int, tuple[EmbeddingKey, Kept]] = {}
        self.reserving: tuple[str, int] | None = None

    def teardown(self) -> None:
        self.runner.close()

    def forgotten(self, key: EmbeddingKey) -> None:
        kept = self.holdings[key.tenant].entries[key.embedding_id]
        if self.reserving is not None and kept.expires_at > self.now:
            assert self.allowed_to_go(key, *self.reserving)
        self.unlist(key)

    def allowed_to_go(self, key: EmbeddingKey, tenant: str, nbytes: int) -> bool:
        """Tell whether it is the turn of a key when there is no room for a tenant."""
        mine = self.holdings.get(tenant, Holding())
        if tenant == "crabs" and mine.used + nbytes > QUOTA:
            return key == EmbeddingKey(tenant, mine.oldest_idle() or "")
        return self.used + nbytes > CAPACITY and agrees(key, self.holdings, tenant)

    @property
    def used(self) -> int:
        return sum(holding.used for holding in self.holdings.values())

    def unlist(self, key: EmbeddingKey) -> None:
        kept = self.holdings[key.tenant].entries.pop(key.embedding_id)
        if not kept.leases:
            self.free(key.tenant, kept.nbytes)

    def free(self, tenant: str, nbytes: int) -> None:
        self.holdings[tenant].used -= nbytes
        if not self.holdings[tenant].used:
            del self.holdings[tenant]

    @rule(
        target=slots, tenant=tenants, name=names, pages=st.integers(1, 3), transient=st.booleans()
    )
    def reserve(self, tenant: str, name: str, pages: int, transient: bool) -> Any:
        spec = (TensorSpec("t", np.dtype(np.uint8), (pages * PAGE,)),)
        key, self.reserving = EmbeddingKey(tenant, name), (tenant, pages * PAGE)
        try:
            slot = self.runner.run(self.store.reserve(key, FACTS, spec, transient=transient))
        except Overloaded as refused:
            self.check_refused(refused, tenant, pages * PAGE)
            return multiple()
        finally:
            self.reserving = None
        self.holdings.setdefault(tenant, Holding()).used += pages * PAGE
        if not transient:
            self.pending.append(slot)
        return slot

    def check_refused(self, refused: Overloaded, tenant: str, nbytes: int) -> None:
        mine = self.holdings.get(tenant, Holding())
        over_quota = tenant == "crabs" and mine.used + nbytes > QUOTA
        assert isinstance(refused, QuotaExceeded) == over_quota
        if over_quota:
            assert mine.oldest_idle() is None
        else:
            assert self.used + nbytes > CAPACITY
            assert plain_victim(self.holdings, tenant) is None

    @rule(target=leases, slot=consumes(slots))
    def publish(self, slot: Slot) -> Lease:
        lease = self.store.publish(slot)
        assert self.runner.run(lease.__aenter__()).revoked == (slot not in self.pending)
        kept = Kept(slot.nbytes, self.now + TTL, leases=1)
        if slot in self.pending:
            self.holdings[slot.key.tenant].entries[slot.key.embedding_id] = kept
            self.pending.remove(slot)
        self.held[id(lease)] = slot.key, kept
        return lease

    @rule(slot=consumes(slots))
    def discard(self, slot: Slot) -> None:
        self.runner.run(self.store.discard(slot))
        self.free(slot.key.tenant, slot.nbytes)
        if slot in self.pending:
            self.pending.remove(slot)

    @rule(target=leases, tenant=tenants, name=names, renew=st.booleans())
    def lease(self, tenant: str, name: str, renew: bool) -> Any:
        key = EmbeddingKey(tenant, name)
        kept = self.holdings.get(tenant, Holding()).entries.get(name)
        found = kept is not None and kept.expires_at > self.now
        lease = self.store.lease(key, renew=renew)
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
        self.holdings[tenant].entries.move_to_end(name)
        self.held[id(lease)] = key, kept
        return lease

    @rule(lease=consumes(leases))
    def let_go(self, lease: Lease) -> None:
        self.runner.run(lease.__aexit__(None, None, None))
        key, kept = self.held.pop(id(lease))
        kept.leases -= 1
        listed = self.holdings[key.tenant].entries.get(key.embedding_id) is kept
        if not listed and not kept.leases:
            self.free(key.tenant, kept.nbytes)

    @rule(tenant=tenants, name=names)
    def delete(self, tenant: str, name: str) -> None:
        key = EmbeddingKey(tenant, name)
        kept = self.holdings.get(tenant, Holding()).entries.get(name)
        found = kept is not None and kept.expires_at > self.now
        assert self.runner.run(self.store.delete(key)) == found
        self.pending = [slot for slot in self.pending if slot.key != key]

    @rule(tenant=tenants, name=names)
    def drop(self, tenant: str, name: str) -> None:
        self.store.drop(EmbeddingKey(tenant, name))
        assert name not in self.holdings.get(tenant, Holding()).entries

    @rule(seconds=st.integers(1, TTL), expires=st.booleans())
    def wait(self, seconds: int, expires: bool) -> None:
        self.now += seconds
        if not expires:
            return
        self.store.expire()
        kept = [kept for holding in self.holdings.values() for kept in holding.entries.values()]
        assert all(each.expires_at > self.now for each in kept)

    @invariant()
    def counts_are_those_of_the_plain_way(self) -> None:
        stats = self.store.stats()
        assert stats.bytes == self.used <= CAPACITY
        assert stats.entries == sum(len(holding.entries) for holding in self.holdings.values())


TestStoreAgainstThePlainWay = StoreAgainstThePlainWay.TestCase
TestStoreAgainstThePlainWay.settings = examples(150, stateful_step_count=40)
