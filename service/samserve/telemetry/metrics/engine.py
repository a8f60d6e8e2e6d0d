"""Metrics of the model runtime and of the queues before it."""

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
        self.ready = Gauges(
            "samserve_engine_ready",
            "1 if the model runtime can be expected to answer.",
            [],
            registry=registry,
        ).labels()
        self._queues: dict[str, Callable[[], int]] = {}
        ScrapedGauge(
            "samserve_queue_waiting",
            "Pieces of work that wait for their turn at a network, or for a thread.",
            ["queue"],
            lambda: _by_name(self._queues),
            registry,
        )
        self._of_network = cache(self._network_metrics)

    def run(self, network: str, model: str) -> _Run:
        """Count a run of a network while the block runs, and how it ended; on the event loop."""
        return _Run(self._of_network(network, model))

    def _network_metrics(self, network: str, model: str) -> _NetworkMetrics:
        return _NetworkMetrics(
            running=self._running.labels(network),
            # All of them, so that a first failure is an increase.
            outcomes={name: self._runs.labels(network, model, name) for name in OUTCOMES},
            seconds=self._seconds.labels(network, model),
        )

    def register_queue(self, name: str, waiting: Callable[[], int]) -> None:
        """Export how many wait, at the time of the scrape, which is in another thread."""
        self._queues[name] = waiting

    def register(
        self,
        transport: Callable[[], Transport],
        models: Callable[[], Mapping[str, ModelInfo]],
    ) -> None:
        """Export the state of the runtime, at the time of the scrape, in another thread."""

        def transports() -> Rows:
            used = transport()
            return [((each.value,), float(each is used)) for each in Transport]

        ScrapedGauge(
            "samserve_engine_transport",
            "1 for the way in which tensors travel to the model runtime, 0 for the others.",
            ["transport"],
            transports,
            self._registry,
        )
        ScrapedGauge(
            "samserve_model_info",
            "1 for each model that is served.",
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
    """The block of a run; a class, since a generator costs twice as much."""

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
    """What only a Triton Inference Server has."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counters, registry=registry)
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
        self._scratch_bytes: dict[str, Callable[[], int]] = {}
        ScrapedGauge(
            "samserve_triton_scratch_bytes",
            "Shared memory for requests under way: all of it, and what lost runs may write into.",
            ["state"],
            lambda: _by_name(self._scratch_bytes),
            registry,
        )

    def register_scratch_bytes(self, state: str, nbytes: Callable[[], int]) -> None:
        """Export shared memory in a state, at the time of the scrape, in another thread."""
        self._scratch_bytes[state] = nbytes


def _by_name(reads: Mapping[str, Callable[[], float]]) -> Rows:
    """Read what was registered under each name."""
    return [((name,), read()) for name, read in list(reads.items())]
