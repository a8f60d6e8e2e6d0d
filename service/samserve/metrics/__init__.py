"""Every Prometheus metric, on a registry that is handed in.

Those of calls stand apart (`samserve.metrics.calls`): they know the methods of the service.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from samserve.metrics.cache import CacheMetrics
from samserve.metrics.engine import EngineMetrics, TritonMetrics
from samserve.metrics.server import ServerMetrics


class Metrics:
    """What the layers below the API write to."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.engine = EngineMetrics(registry)
        self.triton = TritonMetrics(registry)
        self.cache = CacheMetrics(registry)
        self.server = ServerMetrics(registry)
