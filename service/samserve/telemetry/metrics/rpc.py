"""Metrics of calls: how many, how they ended, how long they took and where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from prometheus_client import CollectorRegistry

from samserve.context import CallFacts
from samserve.telemetry.metrics.buckets import MASKS, PROMPTS, SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histograms, Value

CLIENT_STAGES = ("receive", "send")
"""Stages whose time is the client's: it sends its request, it takes the answer."""

_OK = "OK"


@dataclass(slots=True, eq=False)
class CallRecord:
    """One call that has ended.

    ``code`` is the name of its status, ``reason`` that of its error or empty, ``refused`` what was
    exhausted if it was refused.  ``stages`` are seconds of the critical path.  ``trace_id`` is that
    of a trace that is recorded, or empty.
    """

    method: str
    code: str
    reason: str
    refused: str
    seconds: float
    stages: Mapping[str, float]
    facts: CallFacts
    trace_id: str


class CallMetrics:
    """Counters and histograms of calls, by method.

    *types* gives the kind of each method: ``unary`` or ``server_stream``.
    """

    def __init__(self, registry: CollectorRegistry, service: str, types: Mapping[str, str]) -> None:
        self._standard = {method: (kind, service, method) for method, kind in types.items()}
        self._declare_calls(registry)
        self._declare_work(registry)
        for method in types:
            # So that rates are 0, and not unknown, before the first call, and that the first
            # failure is an increase.
            self.started(method)
            self._handled.labels(*self._standard[method], _OK)
            self.in_flight(method)
            self._errors.labels(method, "INTERNAL")
            self._refusals.labels(method, "memory")

    def _declare_calls(self, registry: CollectorRegistry) -> None:
        counter = partial(Counters, registry=registry)
        seconds = partial(Histograms, bounds=SECONDS, registry=registry)
        rpc = ["grpc_type", "grpc_service", "grpc_method"]
        by_method = ["grpc_method"]
        by_model = ["grpc_method", "model"]
        self._started = counter("grpc_server_started", "RPCs that were begun.", rpc)
        self._handled = counter(
            "grpc_server_handled", "RPCs that ended, by status code.", [*rpc, "grpc_code"]
        )
        self._handling = seconds(
            "grpc_server_handling_seconds", "Time from the call to the end of the answer.", rpc
        )
        self._served = seconds(
            "samserve_call_seconds",
            "Time of calls that succeeded, without what the client took to send and to receive.",
            by_model,
        )
        self._stages = seconds(
            "samserve_stage_seconds",
            "Time by stage of a call; the stages of one call add up to its handling time.",
            [*by_model, "stage"],
        )
        self._errors = counter(
            "samserve_errors",
            "Calls that were refused or failed, by the reason that the client was told.",
            [*by_method, "reason"],
        )
        self._refusals = counter(
            "samserve_refusals",
            "Calls that were refused for a bound or a quota, by what was exhausted.",
            [*by_method, "kind"],
        )

    def _declare_work(self, registry: CollectorRegistry) -> None:
        by_method = ["grpc_method"]
        self._in_flight = Gauges(
            "samserve_inflight_requests", "Calls that are being worked on.", by_method, registry
        )
        self._limits = Gauges(
            "samserve_inflight_limit", "Calls that may be worked on at once.", by_method, registry
        )
        self._bytes = Counters(
            "samserve_message_bytes",
            "Bytes of requests that were received and of answers that were sent.",
            [*by_method, "direction"],
            registry,
        )
        self._prompts = Histograms(
            "samserve_prompts_per_call", "Prompts of a call.", by_method, PROMPTS, registry
        )
        self._masks = Histograms(
            "samserve_masks_per_call", "Masks in an answer.", by_method, MASKS, registry
        )
        self._candidates = Counters(
            "samserve_automask_candidates",
            "Candidates that came to a filter of AutoMask, and that it has kept.",
            ["filter", "direction"],
            registry,
        )

    def started(self, method: str) -> Value:
        """Return the number of calls of *method* that were begun."""
        return self._started.labels(*self._standard[method])

    def in_flight(self, method: str) -> Value:
        """Return the number of calls of *method* that are being worked on."""
        return self._in_flight.labels(method)

    def set_limit(self, method: str, limit: int) -> None:
        """Export how many calls of *method* may be in flight."""
        self._limits.labels(method).set(limit)

    def record(self, call: CallRecord) -> None:
        """Count a call that has ended."""
        method, facts, standard = call.method, call.facts, self._standard[call.method]
        exemplar = ({"trace_id": call.trace_id}, time.time()) if call.trace_id else None
        self._handled.labels(*standard, call.code).inc()
        self._handling.labels(*standard).observe(call.seconds, exemplar)
        for stage, spent in call.stages.items():
            self._stages.labels(method, facts.model, stage).observe(spent, exemplar)
        if call.code == _OK:
            theirs = sum(call.stages.get(stage, 0.0) for stage in CLIENT_STAGES)
            self._served.labels(method, facts.model).observe(call.seconds - theirs, exemplar)
        if call.reason:
            self._errors.labels(method, call.reason).inc()
        if call.refused:
            self._refusals.labels(method, call.refused).inc()
        self._bytes.labels(method, "received").inc(facts.received_bytes)
        self._bytes.labels(method, "sent").inc(facts.sent_bytes)
        self._count_work(method, facts)

    def _count_work(self, method: str, facts: CallFacts) -> None:
        if facts.prompts:
            self._prompts.labels(method).observe(facts.prompts)
        # An AutoMask that finds nothing has an answer, too.
        if facts.masks or facts.filters:
            self._masks.labels(method).observe(facts.masks)
        for name, came, kept in facts.filters:
            self._candidates.labels(name, "in").inc(came)
            self._candidates.labels(name, "out").inc(kept)
