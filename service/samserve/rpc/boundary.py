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
from contextlib import ExitStack, aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.message import Message

from samserve.context import RequestContext, deadline_exceeded
from samserve.principal import NOBODY
from samserve.rpc.entrance import Entrance, Rpc
from samserve.rpc.ledger import Entry, Ledger
from samserve.rpc.methods import Method
from samserve.rpc.parsing import most_fields, parse
from samserve.rpc.receiving import Receiver
from samserve.rpc.status import status_of
from samserve.settings import DeadlineSettings, LimitSettings, ServerSettings

REQUEST_ID = "x-request-id"

_DETAILS = "grpc-status-details-bin"
_VALID_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_QUICK_BYTES = 1 << 16
# What an error may take to leave: to a client that does not read, it never would.
_ABORT_S = 5.0

Unary = Callable[[Any, RequestContext], Coroutine[Any, Any, Message]]
Streaming = Callable[[Any, RequestContext], AsyncGenerator[Message]]


class Boundary:
    """Wraps the body of every RPC of the service."""

    def __init__(
        self,
        entrance: Entrance,
        deadlines: DeadlineSettings,
        server: ServerSettings,
        limits: LimitSettings,
        ledger: Ledger,
    ) -> None:
        self._entrance = entrance
        self._receiver = Receiver(entrance.admission, server.receive_s)
        self._ledger = ledger
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
                with self._entrance.admission.holding(context.facts.received_bytes):
                    await self._answer(body(request, context), rpc, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    @asynccontextmanager
    async def _call(self, method: Method, rpc: Rpc) -> AsyncIterator[RequestContext]:
        """Run one call; whatever the block raises ends the call with the right status."""
        entry = self._ledger.open(method, rpc.invocation_metadata())
        context = self._context(entry, rpc)
        rpc.set_trailing_metadata(((REQUEST_ID, context.request_id),))
        try:
            with entry.clock.running():
                async with self._ended_well(entry, context, rpc), self._let_in(entry, context, rpc):
                    yield context
        finally:
            self._ledger.close(entry, context)

    @asynccontextmanager
    async def _ended_well(
        self, entry: Entry, context: RequestContext, rpc: Rpc
    ) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            entry.cancelled(context.remaining_s)
            raise
        except Exception as error:  # the only catch-all: nothing internal may reach a client
            entry.failed(error)
            with entry.clock.stage("send"):
                await self._abort(error, entry, context, rpc)

    @asynccontextmanager
    async def _let_in(self, entry: Entry, context: RequestContext, rpc: Rpc) -> AsyncIterator[None]:
        """Count the call in, if it may come in, until its deadline."""
        method = entry.method
        with ExitStack() as held:
            with entry.clock.stage("admit"):
                context.principal = self._entrance.identify(rpc)
                admitted = self._entrance.admitted(method, context.principal)
                context.allowance = held.enter_context(admitted)
            held.enter_context(self._ledger.metrics.in_flight(method.name))
            try:
                async with asyncio.timeout(context.remaining_s):
                    yield
            except TimeoutError as error:
                raise deadline_exceeded(context.clock.current) from error

    async def _receive(self, method: Method, rpc: Rpc, context: RequestContext) -> Message:
        with context.clock.stage("receive"):
            data = await self._receiver.receive(method, rpc, context.tenant)
        context.facts.received_bytes = len(data)
        with context.clock.stage("prepare"):
            # A picture is copied in no time, but what else is large may be millions of messages.
            if len(data) <= _QUICK_BYTES:
                return parse(method.request, data, self._most_fields)
            return await asyncio.to_thread(parse, method.request, data, self._most_fields)

    async def _answer(
        self,
        answer: Coroutine[Any, Any, Message] | AsyncGenerator[Message],
        rpc: Rpc,
        context: RequestContext,
    ) -> None:
        if isinstance(answer, Coroutine):
            await self._send(await answer, rpc, context)
            return
        # Closed at once when the client leaves, and not when it is garbage collected.
        async with aclosing(answer) as messages:
            async for message in messages:
                await self._send(message, rpc, context)

    async def _send(self, message: Message, rpc: Rpc, context: RequestContext) -> None:
        with context.clock.stage("serialize"):
            data = message.SerializeToString()
        with context.clock.stage("send"):
            try:
                async with asyncio.timeout(self._send_s):
                    await rpc.write(data)
            except TimeoutError as error:
                raise deadline_exceeded("send") from error
        context.facts.sent_bytes += len(data)

    def _context(self, entry: Entry, rpc: Rpc) -> RequestContext:
        # A call without a deadline of its own has None here, or a value of years.
        remaining = rpc.time_remaining()
        default = self._default_s.get(entry.method.name, self._other_s)
        unset = remaining is None or remaining > _NO_DEADLINE_S
        return RequestContext(
            principal=NOBODY,
            request_id=_request_id(rpc),
            deadline=time.monotonic() + (default if unset or remaining is None else remaining),
            clock=entry.clock,
        )

    async def _abort(
        self, error: Exception, entry: Entry, context: RequestContext, rpc: Rpc
    ) -> None:
        status = status_of(error, context.request_id)
        if entry.code is grpc.StatusCode.INTERNAL:
            self._ledger.tell_internal(error, entry, context)
        trailing = ((REQUEST_ID, context.request_id), (_DETAILS, status.SerializeToString()))
        try:
            async with asyncio.timeout(_ABORT_S):
                await rpc.abort(entry.code, status.message, trailing)
        except TimeoutError:
            # gRPC drops a call whose handler is cancelled.
            raise asyncio.CancelledError from None


# Core reports a missing deadline as one in the very far future.
_NO_DEADLINE_S = 10 * 365 * 24 * 3600.0


def _request_id(rpc: Rpc) -> str:
    for key, value in rpc.invocation_metadata() or ():
        if key == REQUEST_ID and isinstance(value, str) and _VALID_REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
