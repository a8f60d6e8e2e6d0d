"""Metrics of the two tiers of the embedding cache."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Iterator, Mapping
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve.telemetry.metrics.buckets import SECONDS
from samserve.types import StoreStats, Tier

_RESULTS = ("hit", "miss", "deleted", "damaged", "format", "model", "unavailable")
_FAILURES = ("unavailable", "full", "refused", "damaged")


class CacheMetrics:
    """What is asked of the shared cache, and what comes of it; and what memory says of itself."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counter, registry=registry)
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
        self.node_seconds = Histogram(
            "samserve_cache_node_seconds",
            "Time that a node took to answer.",
            ["node"],
            buckets=SECONDS,
            registry=registry,
        )

    def read(self, result: str) -> None:
        """Count an embedding that was looked for in the shared cache.

        It was a ``hit``, a ``miss``, ``deleted``, ``damaged`` (and removed), of another ``format``
        or ``model`` (and left alone), or the cache was ``unavailable``.
        """
        self._reads[result] += 1

    def watch_nodes(self, health: Callable[[], Mapping[str, bool]]) -> None:
        """Export which nodes are left alone, at the time of the scrape."""
        # A first failure is an increase only if there was a 0 before.
        self._reads.update(dict.fromkeys(_RESULTS, 0))
        for kind in _FAILURES:
            self.failures.labels(kind)
        self._registry.register(_NodesCollector(health))

    def watch_store(self, stats: Callable[[], StoreStats]) -> None:
        """Export what is held in memory, and all requests, at the time of the scrape."""
        self._registry.register(_StoreCollector(stats, self._reads))


class _NodesCollector(Collector):
    def __init__(self, health: Callable[[], Mapping[str, bool]]) -> None:
        self._health = health

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "samserve_cache_node_away",
            "1 for a node of the shared cache that is left alone since it does not answer.",
            labels=["node"],
        )
        for node, answers in self._health().items():
            family.add_metric([node], float(not answers))
        yield family


class _StoreCollector(Collector):
    def __init__(self, stats: Callable[[], StoreStats], shared: Counts[str]) -> None:
        self._stats = stats
        self._shared = shared

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        yield GaugeMetricFamily("samserve_store_entries", "Embeddings held.", stats.entries)
        yield GaugeMetricFamily("samserve_store_bytes", "Bytes held.", stats.bytes)
        yield GaugeMetricFamily(
            "samserve_store_quarantined_bytes",
            "Bytes of those held that a lost run may write into.",
            stats.quarantined_bytes,
        )
        yield GaugeMetricFamily(
            "samserve_store_capacity_bytes", "Bytes that may be held.", stats.capacity_bytes
        )
        yield CounterMetricFamily(
            "samserve_store_evictions", "Embeddings dropped for room.", stats.evictions
        )
        requests = CounterMetricFamily(
            "samserve_cache_requests",
            "Embeddings looked for, by tier; what misses memory goes on to the shared cache.",
            labels=["tier", "result"],
        )
        requests.add_metric([Tier.MEMORY.value, "hit"], stats.hits)
        requests.add_metric([Tier.MEMORY.value, "miss"], stats.misses)
        for result, count in self._shared.copy().items():
            requests.add_metric([Tier.SHARED.value, result], count)
        yield requests
