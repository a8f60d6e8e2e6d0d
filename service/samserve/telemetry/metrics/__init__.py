"""All Prometheus metrics, a class for each part of the server, on a given registry.

Metrics of calls are separate (`samserve.telemetry.metrics.rpc`): they depend on the methods of the
service.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.cache import CacheMetrics
from samserve.telemetry.metrics.engine import EngineMetrics, TritonMetrics
from samserve.telemetry.metrics.http import HttpMetrics
from samserve.telemetry.metrics.process import ServerMetrics


class Metrics:
    """The metrics of the layers below the API."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.engine = EngineMetrics(registry)
        self.triton = TritonMetrics(registry)
        self.cache = CacheMetrics(registry)
        self.server = ServerMetrics(registry)
        self.http = HttpMetrics(registry)
