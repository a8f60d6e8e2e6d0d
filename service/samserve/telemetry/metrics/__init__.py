"""Every Prometheus metric, on a registry that is handed in.

Those of calls stand apart (`samserve.telemetry.metrics.rpc`): they know the methods of the service.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.engine import EngineMetrics, TritonMetrics
from samserve.telemetry.metrics.process import ServerMetrics
from samserve.telemetry.metrics.store import CacheMetrics


class Metrics:
    """What the layers below the API write to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.engine = EngineMetrics(registry)
        self.triton = TritonMetrics(registry)
        self.cache = CacheMetrics(registry)
        self.server = ServerMetrics(registry)
