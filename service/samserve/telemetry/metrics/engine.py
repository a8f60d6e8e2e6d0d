"""Metrics of the engine and its queues."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.buckets import OUTCOMES, SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histogram, Histograms, Value
from samserve.telemetry.metrics.scraped import Rows, ScrapedGauge
from samserve.types import ModelInfo, Transport


class EngineMetrics:
    """Inferences of the two networks by model, and the queues."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._runs = Counters(
            "samserve_engine_runs",
            "Inferences of a network, by outcome (ok, cancelled, failed).",
            ["network", "model", "outcome"],
            registry=registry,
        )
        self._seconds = Histograms(
            "samserve_engine_run_seconds",
            "Duration of inferences of a network, measured in the gateway.",
            ["network", "model"],
            SECONDS,
            registry,
        )
        self._running = Gauges(
            "samserve_engine_running",
            "Inferences of a network in progress.",
            ["network"],
            registry=registry,
        )
        self.ready = Gauges(
            "samserve_engine_ready",
            "1 if the engine is available.",
            [],
            registry=registry,
        ).labels()
        self._queues: dict[str, Callable[[], int]] = {}
        ScrapedGauge(
            "samserve_queue_depth",
            "Work items in the queue of a network or of a thread pool.",
            ["queue"],
            lambda: _by_name(self._queues),
            registry,
        )
        self._of_network = cache(self._network_metrics)

    def run(self, network: str, model: str) -> _Run:
        """Measure an inference while the block runs; used on the event loop only."""
        return _Run(self._of_network(network, model))

    def _network_metrics(self, network: str, model: str) -> _NetworkMetrics:
        return _NetworkMetrics(
            running=self._running.labels(network),
            # All outcomes exist from the start, so that a first failure is an increase.
            outcomes={name: self._runs.labels(network, model, name) for name in OUTCOMES},
            seconds=self._seconds.labels(network, model),
        )

    def register_queue(self, name: str, waiting: Callable[[], int]) -> None:
        """Export the length of a queue; *waiting* is called at a scrape, in another thread."""
        self._queues[name] = waiting

    def register_state(
        self,
        transport: Callable[[], Transport],
        models: Callable[[], Mapping[str, ModelInfo]],
    ) -> None:
        """Export the state of the engine, read at a scrape, in another thread."""

        def transports() -> Rows:
            used = transport()
            return [((each.value,), float(each is used)) for each in Transport]

        ScrapedGauge(
            "samserve_engine_transport",
            "1 for the transport of tensors in use, 0 for the others.",
            ["transport"],
            transports,
            self._registry,
        )
        ScrapedGauge(
            "samserve_model_info",
            "1 for each served model.",
            ["model", "digest"],
            lambda: [((each.name, each.digest), 1.0) for each in list(models().values())],
            self._registry,
        )


@dataclass(frozen=True, slots=True)
class _NetworkMetrics:
    """The metrics of one network of one model."""

    running: Value
    outcomes: Mapping[str, Value]
    seconds: Histogram


class _Run:
    """The context manager of an inference; a class, since a generator costs twice as much."""

    __slots__ = ("_metrics", "_started")

    def __init__(self, metrics: _NetworkMetrics) -> None:
        self._metrics = metrics

    def __enter__(self) -> None:
        self._metrics.running.inc(1)
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        metrics = self._metrics
        metrics.seconds.observe(time.monotonic() - self._started)
        metrics.running.inc(-1)
        if kind is None:
            outcome = "ok"
        else:
            outcome = "cancelled" if issubclass(kind, asyncio.CancelledError) else "failed"
        metrics.outcomes[outcome].inc()


class TritonMetrics:
    """Metrics of the Triton engine."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counters, registry=registry)
        self.errors = counter(
            "samserve_triton_errors",
            "Failed requests to Triton, by kind.",
            ["kind"],
        )
        self.shared_memory_fallbacks = counter(
            "samserve_triton_shared_memory_fallbacks",
            "Requests sent in messages because the shared memory pool was exhausted.",
            ["network"],
        )
        self._pool_bytes: dict[str, Callable[[], int]] = {}
        ScrapedGauge(
            "samserve_triton_shared_memory_pool_bytes",
            "Bytes of the shared memory pool: total, and quarantined (a request without a response "
            "may still write to them).",
            ["state"],
            lambda: _by_name(self._pool_bytes),
            registry,
        )

    def register_pool_bytes(self, state: str, nbytes: Callable[[], int]) -> None:
        """Export the bytes of the pool in a state; called at a scrape, in another thread."""
        self._pool_bytes[state] = nbytes


def _by_name(reads: Mapping[str, Callable[[], float]]) -> Rows:
    """Return the value registered under each name."""
    return [((name,), read()) for name, read in list(reads.items())]
