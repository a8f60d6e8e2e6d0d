"""Metrics of the process: what it is, whether it is well, who uses up what."""

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

_LAG_EVERY_S = 1.0

QuotaUse = tuple[str, str, float]
"""A tenant, one of its quotas, and how much of it is used: 0 to 1."""


class ServerMetrics:
    """The process, its files and its tenants."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        ProcessCollector(registry=registry)
        self._build = Gauges(
            "samserve_build_info", "1; what runs here.", ["version", "python", "engine"], registry
        )
        self._lag = Histograms(
            "samserve_event_loop_lag_seconds",
            "How late the event loop came to what was due; all calls wait for it.",
            [],
            SECONDS,
            registry,
        ).labels()
        self.prefetches = Counters(
            "samserve_prefetches",
            "Prefetches that ended, by outcome (ok, cancelled, failed).",
            ["outcome"],
            registry,
        )

    def set_build_info(self, engine: str) -> None:
        """Export what runs: version, Python and kind of engine."""
        self._build.labels(__version__, platform.python_version(), engine).set(1)

    def register_ready(self, ready: Callable[[], bool]) -> None:
        """Export what /readyz answers, at the time of the scrape."""
        ScrapedGauge(
            "samserve_ready",
            "1 if calls are answered, as /readyz says.",
            [],
            lambda: [((), float(ready()))],
            self._registry,
        )

    def register_prefetches(self, pending: Callable[[], int]) -> None:
        """Export how many prefetches are not done, at the time of the scrape."""
        ScrapedGauge(
            "samserve_prefetch_pending",
            "Pictures that are being encoded, or wait for that, without a caller.",
            [],
            lambda: [((), pending())],
            self._registry,
        )
        for outcome in OUTCOMES:
            self.prefetches.labels(outcome)

    def register_files(self, files: Sequence[ReloadableFile[Any]]) -> None:
        """Export whether files that may change are valid, at the time of the scrape."""
        ScrapedGauge(
            "samserve_file_in_order",
            "1 if a watched file is in force as it is, 0 if an older content had to be kept.",
            ["file"],
            lambda: [((file.name,), float(file.healthy)) for file in files],
            self._registry,
        )

    def register_quotas(self, used: Callable[[], Iterable[QuotaUse]]) -> None:
        """Export how much of their quotas tenants use, at the time of the scrape.

        *used* is called in another thread.
        """
        ScrapedGauge(
            "samserve_quota_used_ratio",
            "Part of a quota that is in use: 0 to 1.",
            ["tenant", "quota"],
            lambda: [((tenant, quota), ratio) for tenant, quota, ratio in used()],
            self._registry,
        )

    def lag_observed(self) -> AbstractAsyncContextManager[None]:
        """Observe how late the event loop is while the block runs."""
        return supervised(self._observe_lag, "observing the event loop failed", _LAG_EVERY_S)

    async def _observe_lag(self) -> None:
        while True:
            due = time.monotonic() + _LAG_EVERY_S
            await asyncio.sleep(_LAG_EVERY_S)
            self._lag.observe(max(0.0, time.monotonic() - due))
