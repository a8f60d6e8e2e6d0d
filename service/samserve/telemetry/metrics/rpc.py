"""Metrics of calls: how many, how they ended, how long they took and where."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial

from prometheus_client import CollectorRegistry

from samserve.context import CallFacts
from samserve.telemetry.metrics.buckets import MASKS, PROMPTS, SECONDS
from samserve.telemetry.metrics.lockfree import Counters, Gauges, Histogram, Histograms

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


class _Families:
    """The metrics themselves."""

    def __init__(self, registry: CollectorRegistry) -> None:
        counter = partial(Counters, registry=registry)
        gauge = partial(Gauges, registry=registry)
        histogram = partial(Histograms, registry=registry)
        seconds = partial(histogram, bounds=SECONDS)
        rpc = ["grpc_type", "grpc_service", "grpc_method"]
        self.started = counter("grpc_server_started", "RPCs that were begun.", rpc)
        self.handled = counter(
            "grpc_server_handled", "RPCs that ended, by status code.", [*rpc, "grpc_code"]
        )
        self.handling = seconds(
            "grpc_server_handling_seconds", "Time from the call to the end of the answer.", rpc
        )
        self.served = seconds(
            "samserve_call_seconds",
            "Time of calls that succeeded, without what the client took to send and to receive.",
            ["grpc_method", "model"],
        )
        self.stages = seconds(
            "samserve_stage_seconds",
            "Time by stage of a call; the stages of one call add up to its handling time.",
            ["grpc_method", "model", "stage"],
        )
        self.errors = counter(
            "samserve_errors",
            "Calls that were refused or failed, by the reason that the client was told.",
            ["grpc_method", "reason"],
        )
        self.refusals = counter(
            "samserve_refusals",
            "Calls that were refused for a bound or a quota, by what was exhausted.",
            ["grpc_method", "kind"],
        )
        by_method = ["grpc_method"]
        self.in_flight = gauge(
            "samserve_inflight_requests", "Calls that are being worked on.", by_method
        )
        self.limits = gauge(
            "samserve_inflight_limit", "Calls that may be worked on at once.", by_method
        )
        self.bytes = counter(
            "samserve_message_bytes",
            "Bytes of requests that were received and of answers that were sent.",
            ["grpc_method", "direction"],
        )
        self.prompts = histogram(
            "samserve_prompts_per_call", "Prompts of a call.", by_method, bounds=PROMPTS
        )
        self.masks = histogram(
            "samserve_masks_per_call", "Masks in an answer.", by_method, bounds=MASKS
        )
        self.candidates = counter(
            "samserve_automask_candidates",
            "Candidates that came to a filter of AutoMask, and that it has kept.",
            ["filter", "direction"],
        )


class CallMetrics:
    """Counters and histograms of calls, by method.

    *types* gives the kind of each method: ``unary`` or ``server_stream``.
    """

    def __init__(self, registry: CollectorRegistry, service: str, types: Mapping[str, str]) -> None:
        families = _Families(registry)
        standard = {method: (kind, service, method) for method, kind in types.items()}
        # Looked up once: `labels` takes a lock and builds a tuple at every use.
        self.started = cache(lambda method: families.started.labels(*standard[method]))
        self._handled = cache(lambda method, code: families.handled.labels(*standard[method], code))
        self._handling = cache(lambda method: families.handling.labels(*standard[method]))
        self.in_flight = cache(families.in_flight.labels)
        self._served = cache(families.served.labels)
        self._stages = families.stages
        self._stages_of = cache(self._no_stages)
        self._errors = cache(families.errors.labels)
        self._refusals = cache(families.refusals.labels)
        self._limits = families.limits
        self._bytes = cache(families.bytes.labels)
        self._prompts = cache(families.prompts.labels)
        self._masks = cache(families.masks.labels)
        self._candidates = cache(families.candidates.labels)
        for method in types:
            # So that rates are 0, and not unknown, before the first call, and that the first
            # failure is an increase.
            self.started(method)
            self._handled(method, _OK)
            self.in_flight(method)
            self._errors(method, "INTERNAL")
            self._refusals(method, "memory")

    def set_limit(self, method: str, limit: int) -> None:
        """Export how many calls of *method* may be in flight."""
        self._limits.labels(method).set(limit)

    def record(self, call: CallRecord) -> None:
        """Count a call that has ended."""
        method, facts = call.method, call.facts
        seen = ({"trace_id": call.trace_id}, time.time()) if call.trace_id else None
        self._handled(method, call.code).inc()
        self._handling(method).observe(call.seconds, seen)
        known = self._stages_of(method, facts.model)
        for stage, spent in call.stages.items():
            if stage not in known:
                known[stage] = self._stages.labels(method, facts.model, stage)
            known[stage].observe(spent, seen)
        if call.code == _OK:
            theirs = sum(call.stages.get(stage, 0.0) for stage in CLIENT_STAGES)
            self._served(method, facts.model).observe(call.seconds - theirs, seen)
        if call.reason:
            self._errors(method, call.reason).inc()
        if call.refused:
            self._refusals(method, call.refused).inc()
        self._bytes(method, "received").inc(facts.received_bytes)
        self._bytes(method, "sent").inc(facts.sent_bytes)
        self._count_work(method, facts)

    def _no_stages(self, method: str, model: str) -> dict[str, Histogram]:
        return {}

    def _count_work(self, method: str, facts: CallFacts) -> None:
        if facts.prompts:
            self._prompts(method).observe(facts.prompts)
        # An AutoMask that finds nothing has an answer, too.
        if facts.masks or facts.filters:
            self._masks(method).observe(facts.masks)
        for name, came, kept in facts.filters:
            self._candidates(name, "in").inc(came)
            self._candidates(name, "out").inc(kept)
