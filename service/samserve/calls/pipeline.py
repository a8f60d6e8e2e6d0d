"""The steps that every call takes, in any transport, and the one place where errors end it.

Credentials, permission, admission and quota are checked before the request is read, so a caller
that may not call does not get to send megabytes.  No other module turns an exception into a status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from samserve.calls.access_log import CallRecorder, OpenCall
from samserve.calls.admission import Admission
from samserve.calls.metadata import Metadata, size_error, texts
from samserve.calls.methods import Method
from samserve.calls.slow_clients import SlowClientTimeout
from samserve.calls.status import Code, Failure
from samserve.context import RequestContext, deadline_exceeded
from samserve.errors import MetadataTooLarge
from samserve.security.authenticator import HEADER, Authenticator
from samserve.security.principal import Principal
from samserve.security.quotas import Quotas
from samserve.settings import DeadlineSettings, ServerSettings


class Transport(Protocol):
    """One call as a transport has it: what came with it, and the way back to its client."""

    @property
    def metadata(self) -> Metadata:
        """Names and values that the client sent, the same object at each use."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline that the client has set; None if it has set none."""

    def certificate_names(self) -> tuple[str, ...]:
        """Return the names in the verified client certificate; empty if there is none."""

    def begin(self, request_id: str) -> None:
        """Let the answer carry the id of the request, whatever it will be."""

    async def read(self) -> bytes:
        """Wait for the whole request.  Raises `InvalidRequest` if the client sends none."""

    async def write(self, data: bytes) -> None:
        """Send a message of the answer, and wait until the client has taken it."""

    async def fail(self, failure: Failure) -> None:
        """End the call with *failure*; may raise."""


@dataclass(slots=True, eq=False)
class Call:
    """An admitted call: its context, and how its request and answer travel."""

    method: Method
    context: RequestContext
    _transport: Transport
    _admission: Admission
    _server: ServerSettings
    # What the call holds that others may need, until its work is done.
    _held: ExitStack

    async def receive(self) -> bytes:
        """Return the request.

        A transport keeps what has come of it, so each call that waits may hold as much as a
        request may have: one that does not arrive at once takes one of a bounded number of places.
        Raises `DeadlineExceeded` if it takes too long, and `Overloaded` if too many are slow, or
        have too many bytes.
        """
        context = self.context
        with (
            context.clock.stage("receive"),
            SlowClientTimeout(self._slow_request, self._server.receive_s, "receive"),
        ):
            data = await self._transport.read()
        context.facts.received_bytes = len(data)
        self._held.enter_context(self._admission.holding(len(data)))
        return data

    async def send(self, data: bytes, *, last: bool) -> None:
        """Send a message of the answer.

        Clients can hold back an answer for as long as they like.  A call whose work is done, as
        this is its *last* message, gives its place and its share of the quota to the next one if
        the client is slow, and takes one of a bounded number of places for slow answers instead.
        Raises `DeadlineExceeded` if the client does not take it in time, and `Overloaded` if too
        many are slow.
        """
        slow = self._slow_answer if last else nullcontext
        with (
            self.context.clock.stage("send"),
            SlowClientTimeout(slow, self._server.send_s, "send"),
        ):
            await self._transport.write(data)
        self.context.facts.sent_bytes += len(data)

    def _slow_request(self) -> AbstractContextManager[None]:
        # There is next to nothing in it to wait for.
        if self.method.small_request:
            raise deadline_exceeded("receive")
        return self._admission.slow_requests.hold(self.context.tenant)

    @contextmanager
    def _slow_answer(self) -> Iterator[None]:
        with self._admission.slow_answers.hold(self.context.tenant):
            self._held.close()
            yield


class CallPipeline:
    """Runs calls: who may call, how many at once, until when, and what is recorded of it."""

    def __init__(
        self,
        authenticator: Authenticator,
        quotas: Quotas,
        admission: Admission,
        recorder: CallRecorder,
        server: ServerSettings,
        deadlines: DeadlineSettings,
    ) -> None:
        self._authenticator = authenticator
        self._quotas = quotas
        self._admission = admission
        self._recorder = recorder
        self._server = server
        self._deadlines = deadlines

    async def run(
        self, method: Method, transport: Transport, serve: Callable[[Call], Awaitable[None]]
    ) -> None:
        """Let *serve* answer one call; whatever it raises ends the call with the right status."""
        refusal = size_error(transport.metadata, self._server.metadata_bytes)
        metadata = () if refusal else transport.metadata
        with self._recorder.recording(method, metadata) as record:
            remaining_s = transport.remaining_s
            if remaining_s is None:
                remaining_s = method.deadline_s(self._deadlines)
            deadline = time.monotonic() + remaining_s
            transport.begin(record.request_id)
            try:
                with ExitStack() as held:
                    context = self._admit(record, transport, deadline, refusal, held)
                    call = Call(method, context, transport, self._admission, self._server, held)
                    await _until_deadline(call, serve)
            except asyncio.CancelledError:
                record.cancelled(deadline - time.monotonic())
                raise
            except Exception as error:  # the only catch-all: nothing internal may reach a client
                await self._fail(error, record, transport)

    def _admit(
        self,
        record: OpenCall,
        transport: Transport,
        deadline: float,
        refusal: MetadataTooLarge | None,
        held: ExitStack,
    ) -> RequestContext:
        """Decide whether a call may run, and count it as long as *held* is open.

        Raises *refusal*, `Unauthenticated`, `PermissionDenied`, `Overloaded` or `QuotaExceeded`.
        """
        with record.clock.stage("admit"):
            if refusal is not None:
                raise refusal
            principal = record.principal = self._authenticate(transport)
            method, tenant = record.method, principal.tenant
            principal.require(*sorted(method.permissions))
            held.enter_context(self._admission.admit(method.name, tenant))
            held.enter_context(self._quotas.admit(method.limits, tenant, method.name))
            # With the places, so that what is counted is what the limit is about.
            held.enter_context(self._recorder.metrics.in_flight(method.name))
            return RequestContext(
                principal=principal,
                allowance=self._quotas.allowance(tenant),
                request_id=record.request_id,
                deadline=deadline,
                priority=method.priority,
                clock=record.clock,
                facts=record.facts,
            )

    def _authenticate(self, transport: Transport) -> Principal:
        reads_names = self._authenticator.reads_certificates
        names = transport.certificate_names() if reads_names else ()
        return self._authenticator.authenticate(texts(transport.metadata, HEADER), names)

    async def _fail(self, error: Exception, record: OpenCall, transport: Transport) -> None:
        failure = record.failed(error)
        if failure.code is Code.INTERNAL:
            self._recorder.log_internal(error, record)
        with record.clock.stage("send"):
            await transport.fail(failure)


async def _until_deadline(call: Call, serve: Callable[[Call], Awaitable[None]]) -> None:
    try:
        async with asyncio.timeout(call.context.remaining_s):
            await serve(call)
    except TimeoutError as error:
        raise deadline_exceeded(call.context.clock.current) from error
