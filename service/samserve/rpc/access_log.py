"""The account of every call: metrics, one log line, and its part in a trace."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field

import grpc
import structlog

from samserve.context import RequestContext
from samserve.errors import Overloaded, SamserveError
from samserve.rpc.methods import SERVICE, Method
from samserve.rpc.status import code_of
from samserve.stages import StageClock
from samserve.telemetry.metrics.rpc import CallMetrics, CallRecord
from samserve.telemetry.tracing.base import CallEnd, CallTrace, Metadata, Tracing

_Codes = grpc.StatusCode
_now = time.monotonic
# The failures that are the server's, as OpenTelemetry's conventions for gRPC have it.
_SERVER_FAILED = frozenset(
    {
        *(_Codes.UNKNOWN, _Codes.DEADLINE_EXCEEDED, _Codes.UNIMPLEMENTED),
        *(_Codes.INTERNAL, _Codes.UNAVAILABLE, _Codes.DATA_LOSS),
    }
)
# A client's timer and ours do not strike at once: what it sends of its timeout is rounded up by
# up to one in a hundred, and takes a while to arrive.
_ROUNDING = 0.01
_ON_THE_WAY_S = 0.02


@dataclass(slots=True, eq=False)
class Entry:
    """One call: its trace and clock, and how it has ended, which is well until something is noted.

    ``reason`` is that of the error, ``refused`` what was exhausted.
    """

    method: Method
    trace: CallTrace
    clock: StageClock
    started: float = field(default_factory=lambda: _now())  # noqa: PLW0108 - tests move it
    code: grpc.StatusCode = _Codes.OK
    reason: str = ""
    refused: str = ""

    def failed(self, error: Exception) -> None:
        """Note what the call is going to be ended with."""
        self.code = code_of(error)
        self.reason = error.reason if isinstance(error, SamserveError) else "INTERNAL"
        if isinstance(error, Overloaded):
            told = error.metadata
            self.refused = told.get("quota") or told.get("resource") or "memory"

    def cancelled(self, remaining_s: float) -> None:
        """Note that the client has left, *remaining_s* before its deadline.

        A client whose deadline has passed leaves like one that has lost interest.
        """
        allowed_s = _now() - self.started + remaining_s
        late = remaining_s <= _ON_THE_WAY_S + _ROUNDING * allowed_s
        self.code = _Codes.DEADLINE_EXCEEDED if late else _Codes.CANCELLED


class Ledger:
    """Opens an entry for each call, and writes down how it has ended."""

    def __init__(self, metrics: CallMetrics, tracing: Tracing) -> None:
        self.metrics = metrics
        self._tracing = tracing
        # Bound once: whoever asks the lazy one is given a new logger each time.
        self._log = structlog.get_logger("samserve.call").bind()

    def open(self, method: Method, metadata: Metadata | None) -> Entry:
        """Begin."""
        self.metrics.started(method.name).inc()
        trace = self._tracing.begin(SERVICE, method.name, metadata)
        return Entry(method, trace, StageClock(_now, trace.span))

    def close(self, entry: Entry, context: RequestContext) -> None:
        """Write it down, once the clock has stopped."""
        seconds = _now() - entry.started
        stages, facts = entry.clock.seconds, context.facts
        self.metrics.record(
            CallRecord(
                method=entry.method.name,
                code=entry.code.name,
                reason=entry.reason,
                refused=entry.refused,
                seconds=seconds,
                stages=stages,
                facts=facts,
                trace_id=entry.trace.trace_id if entry.trace.recorded else "",
            )
        )
        if entry.trace.recorded:
            entry.trace.end(
                CallEnd(
                    request_id=context.request_id,
                    tenant=context.tenant,
                    code=entry.code.value[0],
                    server_failed=entry.code in _SERVER_FAILED,
                    facts=facts,
                )
            )
        if self._log.is_enabled_for(logging.INFO):
            self._tell(entry, context, seconds, stages)

    def _tell(
        self, entry: Entry, context: RequestContext, seconds: float, stages: dict[str, float]
    ) -> None:
        facts = context.facts
        self._log.info(
            "call",
            method=entry.method.name,
            code=entry.code.name,
            reason=entry.reason or None,
            duration_ms=round(seconds * 1000, 2),
            stages_ms={stage: round(spent * 1000, 2) for stage, spent in stages.items()},
            model=facts.model or None,
            cache=facts.cache or None,
            prompts=facts.prompts or None,
            masks=facts.masks or None,
            received_bytes=facts.received_bytes,
            sent_bytes=facts.sent_bytes,
            tenant=context.tenant or None,
            caller=context.principal.subject or None,
            request_id=context.request_id,
            trace_id=entry.trace.trace_id or None,
        )

    def tell_internal(self, error: Exception, entry: Entry, context: RequestContext) -> None:
        """Log what no client is told."""
        self._log.error(
            "internal error",
            request_id=context.request_id,
            trace_id=entry.trace.trace_id or None,
            exc_info=error,
        )
