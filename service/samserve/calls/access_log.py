"""The record of every call, also of a cancelled one: metrics, one log line, and a span."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import structlog

from samserve.calls.metadata import Metadata, request_id
from samserve.calls.methods import Method
from samserve.calls.status import Code, Failure
from samserve.context import CallFacts
from samserve.errors import Overloaded
from samserve.security.principal import UNAUTHENTICATED, Principal
from samserve.stages import StageClock
from samserve.telemetry.metrics.rpc import CallMetrics, CallRecord
from samserve.telemetry.tracing.base import CallEnd, CallTrace, Tracing

_now = time.monotonic
# The failures of the server, by OpenTelemetry's semantic conventions for gRPC.
_SERVER_FAILED = frozenset({Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNAVAILABLE})
# The timers of client and server do not expire together: gRPC rounds the timeout that it sends up
# by as much as one percent, and the header takes time to arrive.
_ROUNDING = 0.01
_NETWORK_DELAY_S = 0.02


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call in flight: its trace, clock and facts, and its final status, OK by default.

    ``principal`` is set once the caller is authenticated.  ``reason`` is that of the error;
    ``exhausted`` is the limit or quota that rejected the call.
    """

    method: Method
    trace: CallTrace
    clock: StageClock
    request_id: str = ""
    protocol: str = ""
    facts: CallFacts = field(default_factory=CallFacts)
    principal: Principal = UNAUTHENTICATED
    started: float = field(default_factory=lambda: _now())  # noqa: PLW0108 - tests move it
    code: Code = Code.OK
    reason: str = ""
    exhausted: str = ""

    def record_error(self, error: Exception) -> Failure:
        """Record the error that ends the call, and return the failure for the client."""
        failure = Failure.of(error, self.request_id)
        self.code, self.reason = failure.code, failure.reason
        if isinstance(error, Overloaded):
            about = error.metadata
            self.exhausted = about.get("quota") or about.get("resource") or "memory"
        return failure

    def record_cancellation(self, remaining_s: float) -> None:
        """Record a cancellation by the client, *remaining_s* before its deadline.

        gRPC reports a deadline that has passed at the client as a cancellation too.
        """
        allowed_s = _now() - self.started + remaining_s
        late = remaining_s <= _NETWORK_DELAY_S + _ROUNDING * allowed_s
        self.code = Code.DEADLINE_EXCEEDED if late else Code.CANCELLED


class CallRecorder:
    """Opens a record for each call to *service*, and publishes it when the call has ended."""

    def __init__(self, service: str, metrics: CallMetrics, tracing: Tracing) -> None:
        self.metrics = metrics
        self._service = service
        self._tracing = tracing
        # Bound once: the lazy logger creates a new one at every use.
        self._log = structlog.get_logger("samserve.call").bind()

    def recording(self, method: Method, metadata: Metadata) -> Recording:
        """Record a call for the length of the block, during which its clock must run."""
        self.metrics.started(method.name).inc()
        trace = self._tracing.begin(self._service, method.name, metadata)
        clock = StageClock(_now, trace.span)
        return Recording(self, OpenCall(method, trace, clock, request_id(metadata)))

    def publish(self, call: OpenCall) -> None:
        """Publish the record of a call that has ended."""
        seconds = _now() - call.started
        stages, facts, trace = call.clock.seconds, call.facts, call.trace
        self.metrics.record(
            CallRecord(
                method=call.method.name,
                code=call.code.name,
                reason=call.reason,
                exhausted=call.exhausted,
                seconds=seconds,
                stages=stages,
                facts=facts,
                trace_id=trace.trace_id if trace.recorded else "",
            )
        )
        if trace.recorded:
            trace.end(
                CallEnd(
                    request_id=call.request_id,
                    tenant=call.principal.tenant,
                    code=call.code.value,
                    server_failed=call.code in _SERVER_FAILED,
                    facts=facts,
                )
            )
        if self._log.is_enabled_for(logging.INFO):
            self._write_line(call, seconds, stages)

    def _write_line(self, call: OpenCall, seconds: float, stages: dict[str, float]) -> None:
        facts = call.facts
        self._log.info(
            "rpc",
            method=call.method.name,
            protocol=call.protocol,
            code=call.code.name,
            reason=call.reason or None,
            # To two decimals: rounded to whole numbers first, which takes a quarter of the time.
            duration_ms=round(seconds * 1e5) / 100,
            stages_ms={stage: round(spent * 1e5) / 100 for stage, spent in stages.items()},
            model=facts.model or None,
            version=facts.version or None,
            cache=facts.cache or None,
            prompts=facts.prompts or None,
            masks=facts.masks or None,
            received_bytes=facts.received_bytes,
            sent_bytes=facts.sent_bytes,
            tenant=call.principal.tenant or None,
            caller=call.principal.subject or None,
            request_id=call.request_id,
            trace_id=call.trace.trace_id or None,
        )

    def log_internal(self, error: Exception, call: OpenCall) -> None:
        """Log the exception behind an INTERNAL status, which no client receives."""
        self._log.error(
            "internal error",
            request_id=call.request_id,
            trace_id=call.trace.trace_id or None,
            exc_info=error,
        )


class Recording:
    """The block in which a call is recorded; a class, as a generator costs twice as much."""

    __slots__ = ("_call", "_recorder")

    def __init__(self, recorder: CallRecorder, call: OpenCall) -> None:
        self._recorder = recorder
        self._call = call

    def __enter__(self) -> OpenCall:
        return self._call

    def __exit__(self, *_: object) -> None:
        self._recorder.publish(self._call)
