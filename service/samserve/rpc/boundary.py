"""The one place where calls come in and errors go out.

Each call gets a request id, a deadline, admission, metrics and one log line here; no other module
turns an exception into a status.

To gRPC every method is one that streams both ways, which looks the same to a client.  So a handler
begins before the request has been received: who may not call does not get to send megabytes, a
request that trickles in is given up, and bytes that are no request get an error of ours.
"""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import structlog
from google.protobuf.message import Message

from samserve.context import RequestContext, deadline_exceeded
from samserve.errors import SamserveError
from samserve.metrics import Metrics
from samserve.principal import NOBODY
from samserve.rpc.entrance import Entrance, Rpc
from samserve.rpc.methods import SERVICE, Method
from samserve.rpc.parsing import most_fields, parse
from samserve.rpc.receiving import Receiver
from samserve.rpc.status import code_of, status_of
from samserve.settings import DeadlineSettings, LimitSettings, ServerSettings

REQUEST_ID = "x-request-id"

_DETAILS = "grpc-status-details-bin"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_QUICK_BYTES = 1 << 16
# What an error may take to leave: to a client that does not read, it never would.
_ABORT_S = 5.0

Unary = Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, RequestContext], AsyncGenerator[Message]]


@dataclass(slots=True)
class _Outcome:
    code: grpc.StatusCode = grpc.StatusCode.OK
    reason: str = ""


class Boundary:
    """Wraps the body of every RPC of the service."""

    def __init__(
        self,
        entrance: Entrance,
        deadlines: DeadlineSettings,
        server: ServerSettings,
        limits: LimitSettings,
        metrics: Metrics,
    ) -> None:
        self._entrance = entrance
        self._receiver = Receiver(entrance.admission, server.receive_s)
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.call")
        self._send_s = server.send_s
        self._most_fields = most_fields(limits)
        self._other_s = deadlines.other_s
        self._default_s = {
            "Embed": deadlines.embed_s,
            "Predict": deadlines.predict_s,
            "AutoMask": deadlines.automask_s,
        }

    def handler(self, method: Method, body: Unary | Streaming) -> grpc.RpcMethodHandler[Any, Any]:
        """Make *body*, which gets the request and the context, the handler of an RPC."""

        async def handle(_: AsyncIterator[bytes], rpc: Rpc) -> None:
            async with self._call(method, rpc) as context:
                request = await self._receive(method, rpc, context)
                with self._entrance.admission.holding(request.ByteSize()):
                    await self._answer(body(request, context), rpc)

        return grpc.stream_stream_rpc_method_handler(handle)

    @asynccontextmanager
    async def _call(self, method: Method, rpc: Rpc) -> AsyncIterator[RequestContext]:
        """Run one call; whatever the block raises ends the call with the right status."""
        context = self._context(method.name, rpc)
        rpc.set_trailing_metadata(((REQUEST_ID, context.request_id),))
        outcome = _Outcome()
        started = time.monotonic()
        self._metrics.started.labels(SERVICE, method.name).inc()
        try:
            context.principal = self._entrance.identify(rpc)
            with self._entrance.admitted(method, context.principal) as context.allowance:
                async with self._in_flight(method.name, context):
                    yield context
        except asyncio.CancelledError:
            late = context.remaining_s <= 0
            outcome.code = _Codes.DEADLINE_EXCEEDED if late else _Codes.CANCELLED
            raise
        except Exception as error:  # the only catch-all: nothing internal may reach a client
            outcome.code = code_of(error)
            await self._abort(error, context, outcome, rpc)
        finally:
            self._record(method.name, context, outcome, time.monotonic() - started)

    async def _receive(self, method: Method, rpc: Rpc, context: RequestContext) -> Message:
        data = await self._receiver.receive(method, rpc, context.tenant)
        # A picture is copied in no time, but what else is large may be millions of messages.
        if len(data) <= _QUICK_BYTES:
            return parse(method.request, data, self._most_fields)
        return await asyncio.to_thread(parse, method.request, data, self._most_fields)

    async def _answer(
        self, answer: Coroutine[Any, Any, Message] | AsyncGenerator[Message], rpc: Rpc
    ) -> None:
        if isinstance(answer, Coroutine):
            await self._send(await answer, rpc)
            return
        # Closed at once when the client leaves, and not when it is garbage collected.
        async with aclosing(answer) as messages:
            async for message in messages:
                await self._send(message, rpc)

    async def _send(self, message: Message, rpc: Rpc) -> None:
        try:
            async with asyncio.timeout(self._send_s):
                await rpc.write(message.SerializeToString())
        except TimeoutError as error:
            raise deadline_exceeded("send") from error

    def _context(self, method: str, rpc: Rpc) -> RequestContext:
        # A call without a deadline of its own has None here, or a value of years.
        remaining = rpc.time_remaining()
        default = self._default_s.get(method, self._other_s)
        unset = remaining is None or remaining > _NO_DEADLINE_S
        return RequestContext(
            principal=NOBODY,
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
        trailing = ((REQUEST_ID, context.request_id), (_DETAILS, status.SerializeToString()))
        try:
            async with asyncio.timeout(_ABORT_S):
                await rpc.abort(outcome.code, status.message, trailing)
        except TimeoutError:
            # gRPC drops a call whose handler is cancelled.
            raise asyncio.CancelledError from None

    def _record(
        self, method: str, context: RequestContext, outcome: _Outcome, seconds: float
    ) -> None:
        stages = context.clock.seconds
        self._metrics.handled.labels(SERVICE, method, outcome.code.name).inc()
        self._metrics.handling.labels(SERVICE, method).observe(seconds)
        if outcome.reason:
            self._metrics.errors.labels(method, outcome.reason).inc()
        for stage, spent in stages.items():
            self._metrics.stages.labels(method, stage).observe(spent)
        self._log.info(
            "call",
            method=method,
            code=outcome.code.name,
            reason=outcome.reason or None,
            duration_ms=round(seconds * 1000, 2),
            stages_ms={stage: round(spent * 1000, 2) for stage, spent in stages.items()},
            tenant=context.tenant or None,
            caller=context.principal.subject or None,
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
