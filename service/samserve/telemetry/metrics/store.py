"""Metrics of the two tiers of the embedding cache."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.buckets import SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Histograms
from samserve.telemetry.metrics.scraped import Rows, ScrapedCounter, ScrapedGauge
from samserve.types import StoreStats, Tier

_RESULTS = ("hit", "miss", "deleted", "damaged", "format", "model", "unavailable")
_FAILURES = ("unavailable", "full", "refused", "damaged")
# What memory says of itself, by the field of `StoreStats`.
_OF_MEMORY = (
    (ScrapedGauge, "samserve_store_entries", "Embeddings held.", "entries"),
    (ScrapedGauge, "samserve_store_bytes", "Bytes held.", "bytes"),
    (
        ScrapedGauge,
        "samserve_store_quarantined_bytes",
        "Bytes of those held that a lost run may write into.",
        "quarantined_bytes",
    ),
    (
        ScrapedGauge,
        "samserve_store_capacity_bytes",
        "Bytes that may be held.",
        "capacity_bytes",
    ),
    (ScrapedCounter, "samserve_store_evictions", "Embeddings dropped for room.", "evictions"),
)


class CacheMetrics:
    """What is asked of the shared cache, and what comes of it; and what memory says of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counters, registry=registry)
        # In one family with those of memory, which are counted by the store.
        self._reads: Counts[str] = Counts()
        self.writes = counter(
            "samserve_cache_writes",
            "Embeddings offered to the shared cache: stored, exists, or deleted meanwhile.",
            ["result"],
        )
        self.failures = counter(
            "samserve_cache_failures",
            "Commands to the shared cache without a result: unavailable, full, refused, or damaged "
            "on the way and read again.",
            ["kind"],
        )
        self.bytes = counter(
            "samserve_cache_bytes", "Bytes of embeddings from and to it.", ["direction"]
        )
        self.node_seconds = Histograms(
            "samserve_cache_node_seconds",
            "Time that a node took to answer.",
            ["node"],
            SECONDS,
            registry,
        )

    def read(self, result: str) -> None:
        """Count an embedding that was looked for in the shared cache.

        It was a ``hit``, a ``miss``, ``deleted``, ``damaged`` (and removed), of another ``format``
        or ``model`` (and not touched), or the cache was ``unavailable``.
        """
        self._reads[result] += 1

    def register_nodes(self, health: Callable[[], Mapping[str, bool]]) -> None:
        """Export for which nodes the circuit is open, at the time of the scrape."""
        # A first failure is an increase only if there was a 0 before.
        self._reads.update(dict.fromkeys(_RESULTS, 0))
        for kind in _FAILURES:
            self.failures.labels(kind)
        ScrapedGauge(
            "samserve_cache_node_away",
            "1 for a node of the shared cache that is left alone since it does not answer.",
            ["node"],
            lambda: [((node,), float(not answers)) for node, answers in health().items()],
            self._registry,
        )

    def register_store(self, stats: Callable[[], StoreStats]) -> None:
        """Export what is held in memory, and all requests, at the time of the scrape."""

        def requests() -> Rows:
            memory, shared = Tier.MEMORY.value, Tier.SHARED.value
            now = stats()
            yield (memory, "hit"), now.hits
            yield (memory, "miss"), now.misses
            yield from (((shared, result), count) for result, count in self._reads.copy().items())

        for kind, name, documentation, field in _OF_MEMORY:
            kind(name, documentation, [], partial(_read, stats, field), self._registry)
        ScrapedCounter(
            "samserve_cache_requests",
            "Embeddings looked for, by tier; what misses memory goes on to the shared cache.",
            ["tier", "result"],
            requests,
            self._registry,
        )


def _read(stats: Callable[[], StoreStats], field: str) -> Rows:
    return [((), getattr(stats(), field))]
