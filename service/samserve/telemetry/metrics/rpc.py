"""Metrics of calls: counts, status codes, durations and stages."""

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
"""Stages whose duration the client determines: sending its request, accepting the response."""

_OK = "OK"


@dataclass(slots=True, eq=False)
class CallRecord:
    """One call that has ended.

    ``code`` is the name of its status, ``reason`` that of its error or empty, ``exhausted`` the
    limit or quota that rejected it.  ``stages`` are seconds of the critical path.  ``trace_id`` is
    that of a recorded trace, or empty.
    """

    method: str
    code: str
    reason: str
    exhausted: str
    seconds: float
    stages: Mapping[str, float]
    facts: CallFacts
    trace_id: str


class CallMetrics:
    """Counters and histograms of calls, by method.

    *types* are the types of all methods: ``unary``, ``server_stream`` or ``client_stream``.
    """

    def __init__(self, registry: CollectorRegistry, service: str, types: Mapping[str, str]) -> None:
        self._standard = {method: (kind, service, method) for method, kind in types.items()}
        self._declare_calls(registry)
        self._declare_work(registry)
        for method in types:
            # Series exist before the first call, so that rates are 0 and the first failure is an
            # increase.
            self.started(method)
            self._handled.labels(*self._standard[method], _OK)
            self.in_flight(method)
            self._errors.labels(method, "INTERNAL")
            self._rejected.labels(method, "memory")

    def _declare_calls(self, registry: CollectorRegistry) -> None:
        counter = partial(Counters, registry=registry)
        seconds = partial(Histograms, bounds=SECONDS, registry=registry)
        rpc = ["grpc_type", "grpc_service", "grpc_method"]
        by_method = ["grpc_method"]
        by_model = ["grpc_method", "model"]
        self._started = counter("grpc_server_started", "Started RPCs.", rpc)
        self._handled = counter(
            "grpc_server_handled", "Completed RPCs, by status code.", [*rpc, "grpc_code"]
        )
        self._handling = seconds(
            "grpc_server_handling_seconds",
            "Duration of RPCs, from the start of the call to the end of the response.",
            rpc,
        )
        self._served = seconds(
            "samserve_call_seconds",
            "Duration of successful calls, without the time of the client to send and receive.",
            by_model,
        )
        self._stages = seconds(
            "samserve_stage_seconds",
            "Time of calls by stage; the stages of one call add up to its duration.",
            [*by_model, "stage"],
        )
        self._errors = counter(
            "samserve_errors",
            "Calls that were rejected or failed, by the reason in the error.",
            [*by_method, "reason"],
        )
        self._rejected = counter(
            "samserve_rejected",
            "Calls that were rejected by a limit or a quota, by what was exhausted.",
            [*by_method, "kind"],
        )

    def _declare_work(self, registry: CollectorRegistry) -> None:
        by_method = ["grpc_method"]
        self._in_flight = Gauges(
            "samserve_inflight_requests", "Calls in flight.", by_method, registry
        )
        self._limits = Gauges(
            "samserve_inflight_limit", "Maximum calls in flight.", by_method, registry
        )
        self._bytes = Counters(
            "samserve_message_bytes",
            "Bytes of received requests and of sent responses.",
            [*by_method, "direction"],
            registry,
        )
        self._prompts = Histograms(
            "samserve_prompts_per_call", "Prompts per call.", by_method, PROMPTS, registry
        )
        self._masks = Histograms(
            "samserve_masks_per_call", "Masks per call.", by_method, MASKS, registry
        )
        # One series for each version that this process has served.
        self._versions = Counters(
            "samserve_model_calls",
            "Successful calls by the version of the model that answered: the first digits of its "
            "digest.",
            ["grpc_method", "model", "version"],
            registry,
        )
        self._candidates = Counters(
            "samserve_automask_candidates",
            "AutoMask candidates before (in) and after (out) each filter.",
            ["filter", "direction"],
            registry,
        )

    def started(self, method: str) -> Value:
        """Return the counter of started calls of *method*."""
        return self._started.children[self._standard[method]]

    def in_flight(self, method: str) -> Value:
        """Return the gauge of calls of *method* in flight."""
        return self._in_flight.children[method,]

    def set_limit(self, method: str, limit: int) -> None:
        """Export the maximum of calls of *method* in flight."""
        self._limits.labels(method).set(limit)

    def record(self, call: CallRecord) -> None:
        """Count a call that has ended."""
        method, facts, standard = call.method, call.facts, self._standard[call.method]
        exemplar = ({"trace_id": call.trace_id}, time.time()) if call.trace_id else None
        self._handled.children[*standard, call.code].inc()
        self._handling.children[standard].observe(call.seconds, exemplar)
        stages = self._stages.children
        for stage, spent in call.stages.items():
            stages[method, facts.model, stage].observe(spent, exemplar)
        if call.code == _OK:
            client_s = sum(call.stages.get(stage, 0.0) for stage in CLIENT_STAGES)
            self._served.children[method, facts.model].observe(call.seconds - client_s, exemplar)
            if facts.version:
                self._versions.children[method, facts.model, facts.version].inc()
        if call.reason:
            self._errors.labels(method, call.reason).inc()
        if call.exhausted:
            self._rejected.labels(method, call.exhausted).inc()
        self._bytes.children[method, "received"].inc(facts.received_bytes)
        self._bytes.children[method, "sent"].inc(facts.sent_bytes)
        self._count_work(method, facts)

    def _count_work(self, method: str, facts: CallFacts) -> None:
        if facts.prompts:
            self._prompts.labels(method).observe(facts.prompts)
        # An AutoMask that finds no mask counts as well: it has filters.
        if facts.masks or facts.filters:
            self._masks.labels(method).observe(facts.masks)
        for name, count_in, count_out in facts.filters:
            self._candidates.labels(name, "in").inc(count_in)
            self._candidates.labels(name, "out").inc(count_out)
