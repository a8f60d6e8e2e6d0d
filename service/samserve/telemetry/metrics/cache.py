"""Metrics of the two tiers of the embedding cache."""

from __future__ import annotations

from collections import Counter as Counts
from collections.abc import Callable, Mapping
from functools import partial

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.buckets import SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Histograms
from samserve.telemetry.metrics.scraped import Rows, ScrapedCounter, ScrapedGauge
from samserve.types import CacheStats, Tier

_RESULTS = ("hit", "miss", "deleted", "corrupt", "format_mismatch", "model_mismatch", "unavailable")
_ERRORS = ("unavailable", "full", "command_error", "corrupt")
# Metrics of the local tier, by the field of `CacheStats`.
_LOCAL = (
    (ScrapedGauge, "samserve_cache_local_entries", "Embeddings in the local cache.", "entries"),
    (
        ScrapedGauge,
        "samserve_cache_local_bytes",
        "Bytes of embeddings in the local cache.",
        "bytes",
    ),
    (
        ScrapedGauge,
        "samserve_cache_local_quarantined_bytes",
        "Bytes of the local cache that a request without a response may still write to.",
        "quarantined_bytes",
    ),
    (
        ScrapedGauge,
        "samserve_cache_local_capacity_bytes",
        "Capacity of the local cache in bytes.",
        "capacity_bytes",
    ),
    (
        ScrapedCounter,
        "samserve_cache_local_evictions",
        "Embeddings evicted from the local cache.",
        "evictions",
    ),
)


class CacheMetrics:
    """Requests to both tiers and their results, and the state of the local tier."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counters, registry=registry)
        # Exported in one family with the reads of the local tier, which counts its own.
        self._reads: Counts[str] = Counts()
        self.writes = counter(
            "samserve_cache_shared_writes",
            "Writes to the shared cache, by result: stored, exists, or deleted meanwhile.",
            ["result"],
        )
        self.errors = counter(
            "samserve_cache_shared_errors",
            "Failed commands to the shared cache, by kind: unavailable, full, command_error, or "
            "corrupt data that was read again.",
            ["kind"],
        )
        self.bytes = counter(
            "samserve_cache_shared_bytes",
            "Bytes of embeddings read from and written to the shared cache.",
            ["direction"],
        )
        self.node_seconds = Histograms(
            "samserve_cache_shared_node_seconds",
            "Response time of a node of the shared cache.",
            ["node"],
            SECONDS,
            registry,
        )

    def read(self, result: str) -> None:
        """Count a read of the shared cache by its *result*.

        Results are ``hit``, ``miss``, ``deleted``, ``corrupt`` (the value is removed),
        ``format_mismatch`` and ``model_mismatch`` (the value stays), and ``unavailable``.
        """
        self._reads[result] += 1

    def register_nodes(self, health: Callable[[], Mapping[str, bool]]) -> None:
        """Export the state of each node's circuit breaker, read at a scrape."""
        # A first failure is an increase only if there was a 0 before.
        self._reads.update(dict.fromkeys(_RESULTS, 0))
        for kind in _ERRORS:
            self.errors.labels(kind)
        ScrapedGauge(
            "samserve_cache_shared_node_up",
            "1 if the node of the shared cache is up, 0 while its circuit is open.",
            ["node"],
            lambda: [((node,), float(up)) for node, up in health().items()],
            self._registry,
        )

    def register_stats(self, stats: Callable[[], CacheStats]) -> None:
        """Export the state of the local tier and the requests to both tiers, read at a scrape."""

        def requests() -> Rows:
            local, shared = Tier.LOCAL.value, Tier.SHARED.value
            now = stats()
            yield (local, "hit"), now.hits
            yield (local, "miss"), now.misses
            yield from (((shared, result), count) for result, count in self._reads.copy().items())

        for kind, name, documentation, field in _LOCAL:
            kind(name, documentation, [], partial(_read, stats, field), self._registry)
        ScrapedCounter(
            "samserve_cache_requests",
            "Cache reads by tier and result; a local miss leads to a read of the shared tier.",
            ["tier", "result"],
            requests,
            self._registry,
        )


def _read(stats: Callable[[], CacheStats], field: str) -> Rows:
    return [((), getattr(stats(), field))]
