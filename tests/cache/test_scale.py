"""A local tier of any size stays within its capacity, and its operations take constant time.

Work is counted in executed lines of Python, with `sys.settrace`, instead of timed.  Work inside a
call of C code is not counted.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import numpy as np
import pytest
from samserve.cache.local.cache import LocalCache
from samserve.cache.local.eviction import Ranking
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec

PAGE = 4096
# One page, which is mapped and never accessed: an embedding uses no memory but its metadata.
SPECS = (TensorSpec("image_embedding", np.dtype(np.float16), (2, 32, 32)),)
FACTS = EmbeddingFacts(Size(3, 4), "model", "digest")
TTL_S = 3600
SMALL = 1_000
OPERATIONS = 300
# Tolerance of the lines per operation, for periodic clean-ups.
TOLERANCE = 0.01
_STRIDE = 7919


@dataclass
class Filled:
    """A full cache of *entries* embeddings, evenly distributed over *tenants*."""

    entries: int
    tenants: int
    created: int = 0
    reads: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.capacity = self.entries * PAGE
        self.cache = LocalCache(self.capacity, ttl_s=TTL_S, now=lambda: self.now)

    def key(self, number: int) -> EmbeddingKey:
        return EmbeddingKey(f"tenant {number % self.tenants}", f"{number:064x}")

    async def put(self) -> None:
        """Add a new embedding; once the cache is full, another one is evicted."""
        slot = await self.cache.reserve(self.key(self.created), FACTS, SPECS)
        async with self.cache.publish(slot):
            pass
        self.created += 1
        self.check()

    async def read(self) -> None:
        """Lease one of the cached embeddings, which are the last ones, in scattered order."""
        self.reads += 1
        number = self.created - 1 - self.reads * _STRIDE % self.entries
        async with self.cache.lease(self.key(number), renew=True):
            self.check()

    def check(self) -> None:
        assert self.cache.stats().bytes <= self.capacity

    async def lines_per_put(self) -> float:
        return await self._lines(self.put)

    async def lines_per_read(self) -> float:
        return await self._lines(self.read)

    async def lines_per_deletion(self) -> float:
        """Delete the oldest embeddings."""
        oldest = iter(range(self.created - self.entries, self.created))

        async def delete() -> None:
            assert await self.cache.delete(self.key(next(oldest)))

        return await self._lines(delete)

    async def lines_per_expiry(self) -> float:
        self.now += 2 * TTL_S

        async def expire() -> None:
            assert self.cache.expire(1) == 1

        return await self._lines(expire)

    async def _lines(self, operation: Callable[[], Awaitable[None]]) -> float:
        with Counter() as counter:
            for _ in range(OPERATIONS):
                await operation()
        return counter.lines / OPERATIONS


class Counter:
    """Counts the executed lines of functions that are called while the block runs."""

    def __init__(self) -> None:
        self.lines = 0

    def __enter__(self) -> Counter:
        self._before = sys.gettrace()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        self.lines += event == "line"
        return self._trace


async def filled(entries: int, tenants: int) -> Filled:
    """Return a cache that was filled in ten seconds of its clock, and has evicted since."""
    full = Filled(entries, tenants)
    for number in range(entries + OPERATIONS):
        await full.put()
        full.now = 10 * number / entries
    assert full.cache.stats().entries == entries
    assert full.cache.stats().evictions == OPERATIONS
    return full


async def counted(entries: int, tenants: int) -> dict[str, float]:
    """Return the lines per operation in a full cache."""
    full = await filled(entries, tenants)
    return {
        "put": await full.lines_per_put(),
        "read": await full.lines_per_read(),
        "delete": await full.lines_per_deletion(),
        "expire": await full.lines_per_expiry(),
    }


# Entries, tenants, and the tenants of the small cache for comparison: one tenant, tenants with many
# embeddings each, or as many tenants as embeddings.
SIZES = [
    (10_000, 1, 1),
    (10_000, 10_000, SMALL),
    pytest.param(100_000, 10_000, 100, marks=pytest.mark.long),
    pytest.param(100_000, 1, 1, marks=pytest.mark.long),
    pytest.param(100_000, 100_000, SMALL, marks=pytest.mark.long),
    # A million embeddings of one page; real ones would need four terabytes.
    pytest.param(1_000_000, 100_000, 100, marks=[pytest.mark.long, pytest.mark.timeout(1800)]),
]


@pytest.mark.parametrize(("entries", "tenants", "small_tenants"), SIZES)
async def test_operations_take_no_longer_in_a_larger_cache(
    entries: int, tenants: int, small_tenants: int
) -> None:
    small, large = await counted(SMALL, small_tenants), await counted(entries, tenants)

    # It may be less, if fewer outdated items of a ranking reach its top.
    assert [name for name in large if large[name] > small[name] * (1 + TOLERANCE)] == []


def lines_per_move(members: int) -> float:
    """Move members from low ranks to new highest ones, as renewals do to expiries."""
    ranking = Ranking[int]()
    for member in range(members):
        ranking.put(member, member)
    with Counter() as counter:
        for move in range(2 * members):
            # Not the lowest one: an outdated item there is removed at once.
            ranking.put(members + move, (move + members // 2) % members)
    return counter.lines / (2 * members)


def test_clean_up_of_a_ranking_takes_constant_amortised_time() -> None:
    assert lines_per_move(3_000) == pytest.approx(lines_per_move(300), rel=0.1)
