"""Metrics of the model runtime and of the queues before it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve.metrics.buckets import OUTCOMES, SECONDS
from samserve.types import ModelInfo, Transport


class EngineMetrics:
    """Runs of the two networks, by model, and what waits for them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._runs = Counter(
            "samserve_engine_runs",
            "Runs of a network, by outcome (ok, cancelled, failed).",
            ["network", "model", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "samserve_engine_run_seconds",
            "Time of the runs of a network, as the gateway sees it.",
            ["network", "model"],
            buckets=SECONDS,
            registry=registry,
        )
        self._running = Gauge(
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

    @contextmanager
    def run(self, network: str, model: str) -> Iterator[None]:
        """Count a run of a network while the block runs, and how it ended."""
        outcomes, seconds = self._of(network, model)
        outcome = "failed"
        started = time.monotonic()
        try:
            with self._running.labels(network).track_inprogress():
                yield
            outcome = "ok"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            outcomes[outcome].inc()
            seconds.observe(time.monotonic() - started)

    def _children(self, network: str, model: str) -> tuple[dict[str, Counter], Histogram]:
        outcomes = {name: self._runs.labels(network, model, name) for name in OUTCOMES}
        return outcomes, self._seconds.labels(network, model)

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
