"""Metrics of the process: build, readiness, event loop, reloaded files and quotas."""

from __future__ import annotations

import asyncio
import platform
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from samserve import __version__
from samserve.system.background import supervised
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics.buckets import OUTCOMES, SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histograms
from samserve.telemetry.metrics.scraped import ScrapedGauge

_LAG_INTERVAL_S = 1.0

QuotaUse = tuple[str, str, float]
"""A tenant, one of its quotas, and the used ratio: 0 to 1."""


class ServerMetrics:
    """Metrics of the process, its files and its tenants."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
        self._build = Gauges(
            "samserve_build_info",
            "1; labelled by version, Python version and engine.",
            ["version", "python", "engine"],
            registry,
        )
        self._lag = Histograms(
            "samserve_event_loop_lag_seconds",
            "Scheduling delay of the event loop, measured once a second; it delays all calls.",
            [],
            SECONDS,
            registry,
        ).labels()
        self.prefetches = Counters(
            "samserve_prefetches",
            "Completed prefetches, by outcome (ok, cancelled, failed).",
            ["outcome"],
            registry,
        )

    def set_build_info(self, engine: str) -> None:
        """Export version, Python version and kind of engine."""
        self._build.labels(__version__, platform.python_version(), engine).set(1)

    def register_ready(self, ready: Callable[[], bool]) -> None:
        """Export the state of /readyz, read at a scrape."""
        ScrapedGauge(
            "samserve_ready",
            "1 if the gateway is ready, as reported by /readyz.",
            [],
            lambda: [((), float(ready()))],
            self._registry,
        )

    def register_prefetches(self, pending: Callable[[], int]) -> None:
        """Export the number of pending prefetches, read at a scrape."""
        ScrapedGauge(
            "samserve_prefetch_pending",
            "Prefetches that are running or queued.",
            [],
            lambda: [((), pending())],
            self._registry,
        )
        for outcome in OUTCOMES:
            self.prefetches.labels(outcome)

    def register_files(self, files: Sequence[ReloadableFile[Any]]) -> None:
        """Export whether the last reload of each file succeeded, read at a scrape."""
        ScrapedGauge(
            "samserve_config_last_reload_successful",
            "1 if the last reload of the file succeeded, 0 if its previous content stays in use.",
            ["file"],
            lambda: [((file.name,), float(file.healthy)) for file in files],
            self._registry,
        )

    def register_quotas(self, used: Callable[[], Iterable[QuotaUse]]) -> None:
        """Export the used ratio of the tenants' quotas, read at a scrape.

        *used* is called in another thread.
        """
        ScrapedGauge(
            "samserve_quota_used_ratio",
            "Used ratio of a tenant's quota, 0 to 1.",
            ["tenant", "quota"],
            lambda: [((tenant, quota), ratio) for tenant, quota, ratio in used()],
            self._registry,
        )

    def observing_lag(self) -> AbstractAsyncContextManager[None]:
        """Measure the delay of the event loop while the block runs."""
        return supervised(self._observe_lag, "event loop monitoring failed", _LAG_INTERVAL_S)

    async def _observe_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_INTERVAL_S
            await asyncio.sleep(_LAG_INTERVAL_S)
            self._lag.observe(max(0.0, time.monotonic() - due))
