"""A store of any size keeps its bound, and an operation costs what it costs in a small one.

Work is counted in lines of Python, not timed: `sys.settrace` sees each that runs.  What C code does
in one call is not seen.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pytest
from samserve.stores.local.eviction import Ranking
from samserve.stores.local.store import MemoryStore
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec

PAGE = 4096
# One page, which is mapped and never touched: an embedding takes no memory but its bookkeeping.
SPECS = (TensorSpec("image_embedding", np.dtype(np.float16), (2, 32, 32)),)
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")
TTL_S = 3600
SMALL = 1_000
OPERATIONS = 300
# So much may the lines of an operation differ, for what is cleaned up now and then.
TOLERANCE = 0.01
_STRIDE = 7919


@dataclass
class Filled:
    """A store of *entries* embeddings, dealt out to *tenants* in turns."""

    entries: int
    tenants: int
    made: int = 0
    looks: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.capacity = self.entries * PAGE
        self.store = MemoryStore(self.capacity, ttl_s=TTL_S, now=lambda: self.now)

    def key(self, number: int) -> EmbeddingKey:
        return EmbeddingKey(f"tenant {number % self.tenants}", f"{number:064x}")

    async def put(self) -> None:
        """Add a new one; once the store is full, another goes."""
        slot = await self.store.reserve(self.key(self.made), FACTS, SPECS)
        async with self.store.publish(slot):
            pass
        self.made += 1
        self.check()

    async def look(self) -> None:
        """Look at one of those that are there, which are the last ones, here and there."""
        self.looks += 1
        number = self.made - 1 - self.looks * _STRIDE % self.entries
        async with self.store.lease(self.key(number), renew=True):
            self.check()

    def check(self) -> None:
        assert self.store.stats().bytes <= self.capacity

    async def lines_per_put(self) -> float:
        return await self._lines(self.put)

    async def lines_per_look(self) -> float:
        return await self._lines(self.look)

    async def lines_per_deletion(self) -> float:
        """Delete those that are oldest."""
        oldest = iter(range(self.made - self.entries, self.made))

        async def delete() -> None:
            assert await self.store.delete(self.key(next(oldest)))

        return await self._lines(delete)

    async def lines_per_expiry(self) -> float:
        self.now += 2 * TTL_S

        async def expire() -> None:
            assert self.store.expire(1) == 1

        return await self._lines(expire)

    async def _lines(self, operation: Callable[[], Awaitable[None]]) -> float:
        with Counter() as counter:
            for _ in range(OPERATIONS):
                await operation()
        return counter.lines / OPERATIONS


class Counter:
    """Counts the lines that run in functions called while the block runs."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> Counter:
        self._before = sys.gettrace()
        sys.settrace(self._see)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _see(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        return self._see


async def filled(entries: int, tenants: int) -> Filled:
    """Fill a store within ten seconds, and a little more."""
    made = Filled(entries, tenants)
    for number in range(entries + OPERATIONS):
        await made.put()
        made.now = 10 * number / entries
    assert made.store.stats().entries == entries
    assert made.store.stats().evictions == OPERATIONS
    return made


async def counted(entries: int, tenants: int) -> dict[str, float]:
    """Lines per operation in a full store."""
    full = await filled(entries, tenants)
    return {
        "put": await full.lines_per_put(),
        "look": await full.lines_per_look(),
        "delete": await full.lines_per_deletion(),
        "expire": await full.lines_per_expiry(),
    }


# Entries, tenants, and so many tenants in the small store that it is like the large one: a single
# one, some with many embeddings each, or as many tenants as embeddings.
SIZES = [
    (10_000, 1, 1),
    (10_000, 10_000, SMALL),
    pytest.param(100_000, 10_000, 100, marks=pytest.mark.long),
    pytest.param(100_000, 1, 1, marks=pytest.mark.long),
    pytest.param(100_000, 100_000, SMALL, marks=pytest.mark.long),
    # A million of one page; of real ones this would be four terabytes.
    pytest.param(1_000_000, 100_000, 100, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize(("entries", "tenants", "small_tenants"), SIZES)
async def test_an_operation_costs_no_more_in_a_larger_store(
    entries: int, tenants: int, small_tenants: int
) -> None:
    small, large = await counted(SMALL, small_tenants), await counted(entries, tenants)

    # Less, where fewer of the outdated items of a ranking come to its top.
    assert [name for name in large if large[name] > small[name] * (1 + TOLERANCE)] == []


def lines_per_move(members: int) -> float:
    """Move members from low ranks to new highest ones, as renewals do to expiries."""
    ranking = Ranking[int]()
    for member in range(members):
        ranking.put(member, member)
    with Counter() as counter:
        for move in range(2 * members):
            # Not the lowest: an outdated item there is found at once.
            ranking.put(members + move, (move + members // 2) % members)
    return counter.lines / (2 * members)


def test_cleaning_up_a_ranking_costs_each_move_the_same() -> None:
    assert lines_per_move(3_000) == pytest.approx(lines_per_move(300), rel=0.1)
