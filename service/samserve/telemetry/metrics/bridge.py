"""Metrics of `samserve bridge`; it is a process of its own, and has no others but its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry

from samserve.telemetry.metrics.buckets import SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histograms, Value
from samserve.telemetry.metrics.scraped import ScrapedGauge

EMBEDS = ("held", "joined", "cached", "encoded", "failed")
"""How an embedding was found: its id was held, another request was getting it, a gateway had it, or
a gateway encoded the image."""
REASONS = ("HOST_NOT_ALLOWED", "ORIGIN_NOT_ALLOWED", "INVALID_ARGUMENT")


class BridgeMetrics:
    """Requests by tool and route, and what they cost the gateways."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        route = ["tool", "route"]
        self._requests = Counters(
            "samserve_bridge_requests",
            "Requests of tools, by the status in the terms of gRPC.",
            [*route, "code"],
            registry,
        )
        self._seconds = Histograms(
            "samserve_bridge_request_seconds",
            "Duration of requests of tools, from their headers to the end of the response.",
            route,
            SECONDS,
            registry,
        )
        self._in_flight = Gauges(
            "samserve_bridge_inflight_requests", "Requests in flight.", ["tool"], registry
        )
        self._bytes = Counters(
            "samserve_bridge_message_bytes",
            "Bytes of received requests and of sent responses.",
            ["tool", "direction"],
            registry,
        )
        self._declare_gateways(registry)
        self._refused = Counters(
            "samserve_bridge_refused",
            "Requests that were rejected before they reached a tool, by reason.",
            ["reason"],
            registry,
        )
        for reason in REASONS:
            self._refused.labels(reason)

    def _declare_gateways(self, registry: CollectorRegistry) -> None:
        self._embeds = Counters(
            "samserve_bridge_embeds",
            "Embeddings that requests needed, by how they were found.",
            ["outcome"],
            registry,
        )
        self.encoded_bytes = Counters(
            "samserve_bridge_encoded_bytes",
            "Bytes of the images that gateways have encoded for requests.",
            [],
            registry,
        ).labels()
        self.predicts = Counters(
            "samserve_bridge_predicts", "Predicts that were sent to gateways.", [], registry
        ).labels()
        self._unavailable = Counters(
            "samserve_bridge_gateway_unavailable",
            "Calls that a gateway did not take, so that another one was tried.",
            ["gateway"],
            registry,
        )
        for outcome in EMBEDS:
            self._embeds.labels(outcome)

    def declare(self, tool: str, routes: Iterable[str]) -> None:
        """Create the series of a tool, so that its first failure is an increase from 0."""
        self._in_flight.labels(tool)
        for route in routes:
            for code in ("OK", "INTERNAL"):
                self._requests.labels(tool, route, code)

    def in_flight(self, tool: str) -> Value:
        """Return the gauge of requests of *tool* in flight."""
        return self._in_flight.labels(tool)

    def record(
        self, tool: str, route: str, code: str, seconds: float, nbytes: tuple[int, int]
    ) -> None:
        """Count a request that has ended; *nbytes* are those received and those sent."""
        self._requests.labels(tool, route, code).inc()
        self._seconds.labels(tool, route).observe(seconds)
        received, sent = nbytes
        self._bytes.labels(tool, "received").inc(received)
        self._bytes.labels(tool, "sent").inc(sent)

    def count_embed(self, outcome: str) -> None:
        """Count an embedding by its outcome, one of `EMBEDS`."""
        self._embeds.labels(outcome).inc()

    def count_unavailable(self, gateway: str) -> None:
        """Count a call that a gateway did not take."""
        self._unavailable.labels(gateway).inc()

    def count_refused(self, reason: str) -> None:
        """Count a request that was rejected before it reached a tool."""
        self._refused.labels(reason).inc()

    def register(
        self,
        connections: Callable[[], int],
        held_images: Callable[[], int],
        request_bytes: Callable[[], int],
    ) -> None:
        """Export what other parts count, read at a scrape."""
        for name, text, count in (
            ("connections", "Open connections of the listener.", connections),
            ("held_images", "Images whose embedding ids are held.", held_images),
            ("inflight_request_bytes", "Bytes of requests in flight.", request_bytes),
        ):
            ScrapedGauge(f"samserve_bridge_{name}", text, [], _reading(count), self.registry)


def _reading(count: Callable[[], int]) -> Callable[[], list[tuple[tuple[()], float]]]:
    return lambda: [((), count())]
