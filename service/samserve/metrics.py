"""Every Prometheus metric, on a registry that is handed in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve.stores.base import StoreStats
from samserve.types import Transport

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters and histograms that the layers write to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.started = Counter(
            "grpc_server_started",
            "RPCs that were begun.",
            ["grpc_service", "grpc_method"],
            registry=registry,
        )
        self.handled = Counter(
            "grpc_server_handled",
            "RPCs that ended, by status code.",
            ["grpc_service", "grpc_method", "grpc_code"],
            registry=registry,
        )
        self.handling = Histogram(
            "grpc_server_handling_seconds",
            "Time from the request to the end of the answer.",
            ["grpc_service", "grpc_method"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.in_flight = Gauge(
            "samserve_inflight_requests",
            "Calls that are being worked on.",
            ["grpc_method"],
            registry=registry,
        )
        self.stages = Histogram(
            "samserve_stage_seconds",
            "Time by stage of a call.",
            ["grpc_method", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.engine_runs = Counter(
            "samserve_engine_runs",
            "Runs of a network, by outcome (ok, cancelled, failed).",
            ["network", "outcome"],
            registry=registry,
        )

        self.message_fallbacks = Counter(
            "samserve_triton_message_fallbacks",
            "Requests that went in messages although memory is shared, for want of scratch memory.",
            ["network"],
            registry=registry,
        )
        self.scratch_bytes = Gauge(
            "samserve_triton_scratch_bytes",
            "Shared memory for requests under way: all of it, and what lost runs may write into.",
            ["state"],
            registry=registry,
        )
        self.engine_running = Gauge(
            "samserve_engine_running",
            "Runs of a network that are under way.",
            ["network"],
            registry=registry,
        )

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

    def watch_engine(self, transport: Callable[[], Transport]) -> None:
        """Export how tensors travel to the model runtime, as it is at the time of the scrape."""
        self.registry.register(_TransportCollector(transport))


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
