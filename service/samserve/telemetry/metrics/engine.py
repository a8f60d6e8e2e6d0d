"""Metrics of the model runtime and of the queues before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve.telemetry.metrics.buckets import OUTCOMES, SECONDS
from samserve.telemetry.metrics.lockfree import Count, Counters, Gauges, Histogram, Histograms
from samserve.types import ModelInfo, Transport


class EngineMetrics:
    """Runs of the two networks, by model, and what waits for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._runs = Counters(
            "samserve_engine_runs",
            "Runs of a network, by outcome (ok, cancelled, failed).",
            ["network", "model", "outcome"],
            registry=registry,
        )
        self._seconds = Histograms(
            "samserve_engine_run_seconds",
            "Time of the runs of a network, as the gateway sees it.",
            ["network", "model"],
            SECONDS,
            registry,
        )
        self._running = Gauges(
            "samserve_engine_running",
            "Runs of a network that are under way.",
            ["network"],
            registry=registry,
        )
        self.ready = Gauge(
            "samserve_engine_ready",
            "1 if the model runtime can be expected to answer.",
            registry=registry,
        )
        self._waiting = Gauge(
            "samserve_queue_waiting",
            "Pieces of work that wait for their turn at a network, or for a thread.",
            ["queue"],
            registry=registry,
        )
        self._of = cache(self._children)

    def run(self, network: str, model: str) -> _Run:
        """Count a run of a network while the block runs, and how it ended; on the event loop."""
        return _Run(self._of(network, model))

    def _children(self, network: str, model: str) -> _Of:
        return _Of(
            running=self._running.labels(network),
            # All of them, so that a first failure is an increase.
            outcomes={name: self._runs.labels(network, model, name) for name in OUTCOMES},
            seconds=self._seconds.labels(network, model),
        )

    def watch_queue(self, name: str, waiting: Callable[[], int]) -> None:
        """Export how many wait, at the time of the scrape, which is in another thread."""
        self._waiting.labels(name).set_function(waiting)

    def watch(
        self,
        transport: Callable[[], Transport],
        models: Callable[[], Mapping[str, ModelInfo]],
    ) -> None:
        """Export the state of the runtime, at the time of the scrape, in another thread."""
        self._registry.register(_EngineCollector(transport, models))


@dataclass(frozen=True, slots=True)
class _Of:
    """The metrics of one network of one model."""

    running: Count
    outcomes: Mapping[str, Count]
    seconds: Histogram


class _Run:
    """The block of a run; a class, since a generator costs twice as much."""

    __slots__ = ("_of", "_started")

    def __init__(self, of: _Of) -> None:
        self._of = of

    def __enter__(self) -> None:
        self._of.running.inc(1)
        self._started = time.monotonic()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        of = self._of
        of.seconds.observe(time.monotonic() - self._started)
        of.running.inc(-1)
        if kind is None:
            outcome = "ok"
        else:
            outcome = "cancelled" if issubclass(kind, asyncio.CancelledError) else "failed"
        of.outcomes[outcome].inc()


class TritonMetrics:
    """What only a Triton Inference Server has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counter, registry=registry)
        self.errors = counter(
            "samserve_triton_errors",
            "Requests to Triton that were not answered, by what became of them.",
            ["kind"],
        )
        self.message_fallbacks = counter(
            "samserve_triton_message_fallbacks",
            "Requests that went in messages although memory is shared, for want of scratch memory.",
            ["network"],
        )
        self.scratch_bytes = Gauge(
            "samserve_triton_scratch_bytes",
            "Shared memory for requests under way: all of it, and what lost runs may write into.",
            ["state"],
            registry=registry,
        )


class _EngineCollector(Collector):
    def __init__(
        self,
        transport: Callable[[], Transport],
        models: Callable[[], Mapping[str, ModelInfo]],
    ) -> None:
        self._transport = transport
        self._models = models

    def collect(self) -> Iterator[Metric]:
        transports = GaugeMetricFamily(
            "samserve_engine_transport",
            "1 for the way in which tensors travel to the model runtime, 0 for the others.",
            labels=["transport"],
        )
        in_force = self._transport()
        for transport in Transport:
            transports.add_metric([transport.value], float(transport is in_force))
        yield transports
        models = GaugeMetricFamily(
            "samserve_model_info", "1 for each model that is served.", labels=["model", "digest"]
        )
        for model in list(self._models().values()):
            models.add_metric([model.name, model.digest], 1.0)
        yield models
