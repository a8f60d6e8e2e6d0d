"""Every Prometheus metric, on a registry that is handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve.stores.base import StoreStats
from samserve.types import Transport
from samserve.watched import Watched

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms that the layers write to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        seconds = partial(Histogram, buckets=_SECONDS, registry=registry)
        rpc = ["grpc_service", "grpc_method"]
        self.started = counter("grpc_server_started", "RPCs that were begun.", rpc)
        self.handled = counter(
            "grpc_server_handled", "RPCs that ended, by status code.", [*rpc, "grpc_code"]
        )
        self.handling = seconds(
            "grpc_server_handling_seconds", "Time from the call to the end of the answer.", rpc
        )
        self.errors = counter(
            "samserve_errors",
            "Calls that were refused or failed, by the reason that the client was told.",
            ["grpc_method", "reason"],
        )
        self.in_flight = gauge(
            "samserve_inflight_requests", "Calls that are being worked on.", ["grpc_method"]
        )
        self.stages = seconds(
            "samserve_stage_seconds", "Time by stage of a call.", ["grpc_method", "stage"]
        )
        self.engine_runs = counter(
            "samserve_engine_runs",
            "Runs of a network, by outcome (ok, cancelled, failed).",
            ["network", "outcome"],
        )
        self.engine_running = gauge(
            "samserve_engine_running", "Runs of a network that are under way.", ["network"]
        )
        self.message_fallbacks = counter(
            "samserve_triton_message_fallbacks",
            "Requests that went in messages although memory is shared, for want of scratch memory.",
            ["network"],
        )
        self.scratch_bytes = gauge(
            "samserve_triton_scratch_bytes",
            "Shared memory for requests under way: all of it, and what lost runs may write into.",
            ["state"],
        )
        self.cache = CacheMetrics(registry)

    @contextmanager
    def engine_run(self, network: str) -> Iterator[None]:
        """Count a run of a network while the block runs, and how it ended."""
        outcome = "failed"
        try:
            with self.engine_running.labels(network).track_inprogress():
                yield
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            self.engine_runs.labels(network, outcome).inc()

    def watch_store(self, stats: Callable[[], StoreStats]) -> None:
        """Export what a store says of itself whenever somebody scrapes."""
        self.registry.register(_StoreCollector(stats))

    def watch_files(self, files: Sequence[Watched[Any]]) -> None:
        """Export whether files that may change are in order, at the time of the scrape."""
        self.registry.register(_FilesCollector(files))

    def watch_engine(self, transport: Callable[[], Transport]) -> None:
        """Export how tensors travel to the model runtime, as it is at the time of the scrape."""
        self.registry.register(_TransportCollector(transport))


class CacheMetrics:
    """What is asked of the shared cache, and what comes of it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        counter = partial(Counter, registry=registry)
        self.reads = counter(
            "samserve_cache_reads",
            "Embeddings looked for in the shared cache: hit, miss, deleted, damaged (removed), or "
            "of another format or model (left alone).",
            ["result"],
        )
        self.writes = counter(
            "samserve_cache_writes",
            "Embeddings offered to the shared cache: stored, exists, or deleted meanwhile.",
            ["result"],
        )
        self.failures = counter(
            "samserve_cache_failures",
            "Commands to the shared cache without a result: unavailable, full or refused.",
            ["kind"],
        )
        self.bytes = counter(
            "samserve_cache_bytes", "Bytes of embeddings from and to it.", ["direction"]
        )
        self.node_seconds = Histogram(
            "samserve_cache_node_seconds",
            "Time that a node took to answer.",
            ["node"],
            buckets=_SECONDS,
            registry=registry,
        )

    def watch(self, health: Callable[[], Mapping[str, bool]]) -> None:
        """Export which nodes are left alone, at the time of the scrape."""
        self._registry.register(_NodesCollector(health))


class _TransportCollector(Collector):
    def __init__(self, transport: Callable[[], Transport]) -> None:
        self._transport = transport

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "samserve_engine_transport",
            "1 for the way in which tensors travel to the model runtime, 0 for the others.",
            labels=["transport"],
        )
        in_force = self._transport()
        for transport in Transport:
            family.add_metric([transport.value], float(transport is in_force))
        yield family


class _FilesCollector(Collector):
    def __init__(self, files: Sequence[Watched[Any]]) -> None:
        self._files = files

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "samserve_file_in_order",
            "1 if a watched file is in force as it is, 0 if an older content had to be kept.",
            labels=["file"],
        )
        for file in self._files:
            family.add_metric([file.name], float(file.healthy))
        yield family


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
    def __init__(self, stats: Callable[[], StoreStats]) -> None:
        self._stats = stats

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
        yield CounterMetricFamily("samserve_store_hits", "Leases found.", stats.hits)
        yield CounterMetricFamily("samserve_store_misses", "Leases not found.", stats.misses)
        yield CounterMetricFamily(
            "samserve_store_evictions", "Embeddings dropped for room.", stats.evictions
        )
