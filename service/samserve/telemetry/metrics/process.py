"""Metrics of the process: what it is, whether it is well, who uses up what."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from samserve import __version__
from samserve.system.reloading import Watched
from samserve.telemetry.metrics.buckets import OUTCOMES, SECONDS

_LAG_EVERY_S = 1.0

QuotaUse = tuple[str, str, float]
"""A tenant, one of its quotas, and how much of it is used: 0 to 1."""


class ServerMetrics:
    """The process, its files and its tenants."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
        self._build = Gauge(
            "samserve_build_info",
            "1; what runs here.",
            ["version", "python", "engine"],
            registry=registry,
        )
        self._ready = Gauge(
            "samserve_ready", "1 if calls are answered, as /readyz says.", registry=registry
        )
        self._lag = Histogram(
            "samserve_event_loop_lag_seconds",
            "How late the event loop came to what was due; all calls wait for it.",
            buckets=SECONDS,
            registry=registry,
        )
        self._pending = Gauge(
            "samserve_prefetch_pending",
            "Pictures that are being encoded, or wait for that, without a caller.",
            registry=registry,
        )
        self.prefetches = Counter(
            "samserve_prefetches",
            "Prefetches that ended, by outcome (ok, cancelled, failed).",
            ["outcome"],
            registry=registry,
        )

    def tell_build(self, engine: str) -> None:
        """Export what runs: version, Python and kind of engine."""
        self._build.labels(__version__, platform.python_version(), engine).set(1)

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        """Export what the probe is told, at the time of the scrape."""
        self._ready.set_function(lambda: float(ready()))

    def watch_prefetches(self, pending: Callable[[], int]) -> None:
        """Export how many prefetches are not done, at the time of the scrape."""
        self._pending.set_function(pending)
        for outcome in OUTCOMES:
            self.prefetches.labels(outcome)

    def watch_files(self, files: Sequence[Watched[Any]]) -> None:
        """Export whether files that may change are in order, at the time of the scrape."""
        self._registry.register(_FilesCollector(files))

    def watch_quotas(self, used: Callable[[], Iterable[QuotaUse]]) -> None:
        """Export how much of their quotas tenants use, at the time of the scrape.

        *used* is called in another thread.
        """
        self._registry.register(_QuotasCollector(used))

    @asynccontextmanager
    async def lag_observed(self) -> AsyncIterator[None]:
        """Observe how late the event loop is while the block runs."""
        task = asyncio.create_task(self._observe_lag())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _observe_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(0.0, time.monotonic() - due))


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


class _QuotasCollector(Collector):
    def __init__(self, used: Callable[[], Iterable[QuotaUse]]) -> None:
        self._used = used

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "samserve_quota_used_ratio",
            "Part of a quota that is in use: 0 to 1.",
            labels=["tenant", "quota"],
        )
        for tenant, quota, ratio in self._used():
            family.add_metric([tenant, quota], ratio)
        yield family
