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
from dataclasses import dataclass, field
from typing import Any

import grpc
from google.protobuf.message import Message

from samserve.context import RequestContext, deadline_exceeded
from samserve.errors import SamserveError
from samserve.rpc.access_log import Entry, Ledger
from samserve.rpc.auth import Entrance, Rpc
from samserve.rpc.field_limit import most_fields, parse
from samserve.rpc.metadata import Metadata, size_of, too_large
from samserve.rpc.methods import Method
from samserve.rpc.request_reader import Receiver
from samserve.rpc.sending import Sender
from samserve.rpc.status import status_of
from samserve.security.principal import NOBODY
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
class _Call:
    """A call under way, and what it holds that others may need: closed once its work is done."""

    rpc: Rpc
    metadata: Metadata
    context: RequestContext
    # Why it may not come in, if that is known before anybody looks who calls.
    refusal: SamserveError | None = None
    place: ExitStack = field(default_factory=ExitStack)


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
        self._sender = Sender(entrance.admission, server.send_s)
        self._most_metadata = server.metadata_bytes
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
            async with self._call(method, rpc) as call:
                # Not kept in a name: nothing needs the request while its answer is sent.
                answer = body(await self._receive(method, call), call.context)
                await self._answer(answer, call)

        return grpc.stream_stream_rpc_method_handler(handle)

    @asynccontextmanager
    async def _call(self, method: Method, rpc: Rpc) -> AsyncIterator[_Call]:
        """Run one call; whatever the block raises ends the call with the right status."""
        # Asked for once: gRPC builds a new copy each time.
        metadata: Metadata = tuple(rpc.invocation_metadata() or ())
        refusal = None
        if (nbytes := size_of(metadata)) > self._most_metadata:
            metadata, refusal = (), too_large(nbytes, self._most_metadata)
        entry = self._ledger.open(method, metadata)
        context = self._context(entry, rpc, metadata)
        call = _Call(rpc, metadata, context, refusal)
        rpc.set_trailing_metadata(((REQUEST_ID, context.request_id),))
        try:
            with entry.clock.running():
                async with self._ended_well(entry, context, rpc), self._let_in(entry, call):
                    yield call
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
    async def _let_in(self, entry: Entry, call: _Call) -> AsyncIterator[None]:
        """Count the call in, if it may come in, until its deadline."""
        method, context = entry.method, call.context
        with call.place:
            with entry.clock.stage("admit"):
                if call.refusal is not None:
                    raise call.refusal
                context.principal = self._entrance.identify(call.rpc, call.metadata)
                admitted = self._entrance.admitted(method, context.principal)
                context.allowance = call.place.enter_context(admitted)
            # With its place, so that what is counted is what the limit is about.
            call.place.enter_context(self._ledger.metrics.in_flight(method.name))
            try:
                async with asyncio.timeout(context.remaining_s):
                    yield
            except TimeoutError as error:
                raise deadline_exceeded(context.clock.current) from error

    async def _receive(self, method: Method, call: _Call) -> Message:
        context = call.context
        with context.clock.stage("receive"):
            data = await self._receiver.receive(method, call.rpc, context.tenant)
        context.facts.received_bytes = len(data)
        call.place.enter_context(self._entrance.admission.holding(len(data)))
        with context.clock.stage("prepare"):
            # A picture is copied in no time, but what else is large may be millions of messages.
            if len(data) <= _QUICK_BYTES:
                return parse(method.request, data, self._most_fields)
            return await asyncio.to_thread(parse, method.request, data, self._most_fields)

    async def _answer(
        self, answer: Coroutine[Any, Any, Message] | AsyncGenerator[Message], call: _Call
    ) -> None:
        if isinstance(answer, Coroutine):
            await self._send(await answer, call, last=True)
            return
        # Closed at once when the client leaves, and not when it is garbage collected.
        async with aclosing(answer) as messages:
            async for message in messages:
                await self._send(message, call, last=False)

    async def _send(self, message: Message, call: _Call, *, last: bool) -> None:
        context = call.context
        with context.clock.stage("serialize"):
            data = message.SerializeToString()
        with context.clock.stage("send"):
            if last:
                await self._sender.send_last(data, call.rpc, context.tenant, call.place)
            else:
                await self._sender.send(data, call.rpc)
        context.facts.sent_bytes += len(data)

    def _context(self, entry: Entry, rpc: Rpc, metadata: Metadata) -> RequestContext:
        # A call without a deadline of its own has None here, or a value of years.
        remaining = rpc.time_remaining()
        default = self._default_s.get(entry.method.name, self._other_s)
        unset = remaining is None or remaining > _NO_DEADLINE_S
        return RequestContext(
            principal=NOBODY,
            request_id=_request_id(metadata),
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
            # It waits behind an answer that is not taken; what holds the place ends with the task.
            raise asyncio.CancelledError from None


# Core reports a missing deadline as one in the very far future.
_NO_DEADLINE_S = 10 * 365 * 24 * 3600.0


def _request_id(metadata: Metadata) -> str:
    for key, value in metadata:
        if key == REQUEST_ID and isinstance(value, str) and _VALID_REQUEST_ID.fullmatch(value):
            return value
    return uuid.uuid4().hex
