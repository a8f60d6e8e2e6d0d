"""Metrics of the HTTP listener: its calls by protocol, refused requests, and connections."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.lockfree import Counters
from samserve.telemetry.metrics.scraped import ScrapedGauge

PROTOCOLS = ("connect", "grpc_web", "json")
REASONS = ("HOST_NOT_ALLOWED", "ORIGIN_NOT_ALLOWED", "INVALID_ARGUMENT", "SESSION_TOKEN_INVALID")


class HttpMetrics:
    """Metrics of the HTTP listener; its calls also count among those of the service."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self._calls = Counters(
            "samserve_http_calls",
            "Calls over the HTTP listener, by protocol; also counted as RPCs.",
            ["protocol"],
            registry,
        )
        self._refused = Counters(
            "samserve_http_refused",
            "Requests that the HTTP listener rejected before any call, by reason.",
            ["reason"],
            registry,
        )
        for protocol in PROTOCOLS:
            self._calls.labels(protocol)
        for reason in REASONS:
            self._refused.labels(reason)

    def count_call(self, protocol: str) -> None:
        """Count a call."""
        self._calls.labels(protocol).inc()

    def count_refused(self, reason: str) -> None:
        """Count a request that was rejected before any call."""
        self._refused.labels(reason).inc()

    def register_connections(self, count: Callable[[], int]) -> None:
        """Export the number of open connections, read at a scrape."""
        ScrapedGauge(
            "samserve_http_connections",
            "Open connections of the HTTP listener.",
            [],
            lambda: [((), count())],
            self._registry,
        )
