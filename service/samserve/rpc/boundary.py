"""The one place where calls come in and errors go out.

Each call gets a request id, a deadline, admission, metrics and one log line here; no other module
turns an exception into a status.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from samserve.context import RequestContext, deadline_exceeded
from samserve.errors import SamserveError
from samserve.metrics import Metrics
from samserve.rpc.admission import Admission
from samserve.rpc.status import code_of, status_of
from samserve.settings import DeadlineSettings

SERVICE = "samserve.v1.SegmentationService"
REQUEST_ID = "x-request-id"

_DETAILS = "grpc-status-details-bin"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")

Rpc = grpc.aio.ServicerContext[Any, Any]


@dataclass(slots=True)
class _Outcome:
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""


class Boundary:
    """Wraps the body of every RPC of the service."""

    def __init__(self, admission: Admission, deadlines: DeadlineSettings, metrics: Metrics) -> None:
        self._admission = admission
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.call")
        self._other_s = deadlines.other_s
        self._default_s = {
            "Embed": deadlines.embed_s,
            "Predict": deadlines.predict_s,
            "AutoMask": deadlines.automask_s,
        }

    @asynccontextmanager
    async def call(self, method: str, request: Message, rpc: Rpc) -> AsyncIterator[RequestContext]:
        """Run the body of one call; whatever it raises ends the call with the right status."""
        context = self._context(method, rpc)
        rpc.set_trailing_metadata(((REQUEST_ID, context.request_id),))
        outcome = _Outcome()
        started = time.monotonic()
        self._metrics.started.labels(SERVICE, method).inc()
        try:
            with self._admission.admit(method, request.ByteSize()):
                async with self._in_flight(method, context):
                    yield context
        except (asyncio.CancelledError, GeneratorExit):
            late = context.remaining_s <= 0
            outcome.code = _Codes.DEADLINE_EXCEEDED if late else _Codes.CANCELLED
            raise
        except Exception as error:  # the only catch-all: nothing internal may reach a client
            outcome.code = code_of(error)
            await self._abort(error, context, outcome, rpc)
        finally:
            self._record(method, context, outcome, time.monotonic() - started)

    def _context(self, method: str, rpc: Rpc) -> RequestContext:
        # A call without a deadline of its own has None here, or a value of years.
        remaining = rpc.time_remaining()
        default = self._default_s.get(method, self._other_s)
        unset = remaining is None or remaining > _NO_DEADLINE_S
        return RequestContext(
            request_id=_request_id(rpc),
            deadline=time.monotonic() + (default if unset or remaining is None else remaining),
        )

    @asynccontextmanager
    async def _in_flight(self, method: str, context: RequestContext) -> AsyncIterator[None]:
        with self._metrics.in_flight.labels(method).track_inprogress():
            try:
                async with asyncio.timeout(context.remaining_s):
                    yield
            except TimeoutError as error:
                raise deadline_exceeded(context.clock.current) from error

    async def _abort(
        self, error: Exception, context: RequestContext, outcome: _Outcome, rpc: Rpc
    ) -> None:
        status = status_of(error, context.request_id)
        outcome.reason = error.reason if isinstance(error, SamserveError) else "INTERNAL"
        if outcome.code is grpc.StatusCode.INTERNAL:
            self._log.error("internal error", request_id=context.request_id, exc_info=error)
        await rpc.abort(
            outcome.code,
            status.message,
            ((REQUEST_ID, context.request_id), (_DETAILS, status.SerializeToString())),
        )

    def _record(
        self, method: str, context: RequestContext, outcome: _Outcome, seconds: float
    ) -> None:
        stages = context.clock.seconds
        self._metrics.handled.labels(SERVICE, method, outcome.code.name).inc()
        self._metrics.handling.labels(SERVICE, method).observe(seconds)
        for stage, spent in stages.items():
            self._metrics.stages.labels(method, stage).observe(spent)
        self._log.info(
            "call",
            method=method,
            code=outcome.code.name,
            reason=outcome.reason or None,
            duration_ms=round(seconds * 1000, 2),
            stages_ms={stage: round(spent * 1000, 2) for stage, spent in stages.items()},
            tenant=context.tenant,
            request_id=context.request_id,
        )


_Codes = grpc.StatusCode
# Core reports a missing deadline as one in the very far future.
_NO_DEADLINE_S = 10 * 365 * 24 * 3600.0


def _request_id(rpc: Rpc) -> str:
    for key, value in rpc.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _VALID_REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
