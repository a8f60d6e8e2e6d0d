"""What an embedding store costs as it grows: a look-up, a new one that evicts, its bookkeeping.

Full stores of a thousand to a million embeddings, of one tenant or of many, side by side in one
process; they are measured in turns, in CPU time.  Looks go anywhere, or to the latest thousand:
what the former cost more is the processor's, whose caches do not hold a large store's bookkeeping.
An embedding is one page that is never touched.  Bookkeeping is what Python allocated while a store
was filled, without the arena.

``python -m benchmarks.l1 [--rounds 15] [--operations 2000] [--largest 1000000]``
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
import tracemalloc
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np
from samserve.stores.local.store import MemoryStore
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec

_PAGE = 4096
_SPECS = (TensorSpec("image_embedding", np.dtype(np.uint8), (_PAGE,)),)
_FACTS = EmbeddingFacts(Size(1024, 1024), "model", "digest")
_MOST_TENANTS = 100_000
_LATEST = 1000


@dataclass
class Full:
    """A full store, whose entries are dealt out to tenants in turns, and its times."""

    entries: int
    tenants: int
    made: int = 0
    kept_bytes: float = 0
    # Microseconds by round, of "anywhere", "latest" and "new".
    spent_us: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        self.gone: set[str] = set()
        self.store = MemoryStore(self.entries * _PAGE, ttl_s=3600, forgotten=self._forgotten)

    def _forgotten(self, key: EmbeddingKey) -> None:
        self.gone.add(key.embedding_id)

    def key(self, number: int) -> EmbeddingKey:
        """Name an embedding as the server does: 64 hexadecimal digits."""
        return EmbeddingKey(f"tenant {number % self.tenants}", f"{number:064x}")

    def new(self, count: int) -> list[EmbeddingKey]:
        """Name so many that were never there."""
        self.made += count
        return [self.key(number) for number in range(self.made - count, self.made)]

    def present(self, count: int, among: int) -> list[EmbeddingKey]:
        """Choose so many that are there, among those made last."""
        oldest = max(0, self.made - among)
        found = list[EmbeddingKey]()
        while len(found) < count:
            key = self.key(random.randrange(oldest, self.made))  # noqa: S311
            if key.embedding_id not in self.gone:
                found.append(key)
        return found

    async def fill(self) -> None:
        """Fill the store, and count what that takes for each entry."""
        tracemalloc.start()
        for _ in range(self.entries):
            await self.put(self.new(1))
        self.kept_bytes = tracemalloc.get_traced_memory()[0] / self.entries
        tracemalloc.stop()

    async def put(self, keys: list[EmbeddingKey]) -> None:
        """Reserve and publish new ones; each evicts another once the store is full."""
        for key in keys:
            async with self.store.publish(await self.store.reserve(key, _FACTS, _SPECS)):
                pass

    async def look(self, keys: list[EmbeddingKey]) -> None:
        """Hold each for a moment."""
        for key in keys:
            async with self.store.lease(key):
                pass

    async def measure(self, count: int) -> None:
        """Time so many of either."""
        anywhere = self.present(count, 2 * self.entries)
        self.spent_us["anywhere"].append(await _us_each(self.look, anywhere))
        latest = self.present(count, _LATEST)
        await self.look(latest)
        self.spent_us["latest"].append(await _us_each(self.look, latest))
        self.spent_us["new"].append(await _us_each(self.put, self.new(count)))


async def _us_each(
    operation: Callable[[list[EmbeddingKey]], Awaitable[None]], keys: list[EmbeddingKey]
) -> float:
    begun = time.thread_time()
    await operation(keys)
    return (time.thread_time() - begun) / len(keys) * 1e6


async def compare(sizes: list[int], tenants: int, rounds: int, operations: int) -> list[Full]:
    """Fill stores of all sizes, with so many tenants at most, and measure them in turns."""
    stores = [Full(entries, min(entries, tenants)) for entries in sizes]
    for store in stores:
        await store.fill()
    for _ in range(rounds):
        for store in stores:
            await store.measure(operations)
    return stores


def show(stores: list[Full]) -> None:
    """Print a line for each store, with ratios to the first."""
    medians = [
        {name: statistics.median(spent) for name, spent in store.spent_us.items()}
        for store in stores
    ]
    for store, median in zip(stores, medians, strict=True):
        times = [f"{median[name]:9.2f} {median[name] / medians[0][name]:6.2f}" for name in median]
        print(f"{store.tenants:8} {store.entries:8}", *times, f"{store.kept_bytes / 2**20:13.6f}")


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--largest", type=int, default=1_000_000)
    arguments = parser.parse_args()
    sizes = [entries for entries in (10**3, 10**4, 10**5, 10**6) if entries <= arguments.largest]
    print(
        f"{'tenants':>8} {'entries':>8}",
        *(f"{name:>9} {'ratio':>6}" for name in ("look us", "latest us", "new us")),
        f"{'MiB per entry':>13}",
    )
    for tenants in (1, _MOST_TENANTS):
        show(asyncio.run(compare(sizes, tenants, arguments.rounds, arguments.operations)))


if __name__ == "__main__":
    main()
