"""The pipeline of every call: authentication, admission, deadline, errors, cancellation.

A call ends with its response, with an error, or because the client has cancelled it; then its task
is cancelled too.  Credentials, permission, admission and quota are checked before the request is
read, so that an unauthorized caller cannot send megabytes.  No other module turns an exception into
a status.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

from samserve.calls.access_log import CallRecorder, OpenCall
from samserve.calls.admission import Admission, RequestBytes
from samserve.calls.metadata import Metadata, size_error, text_values
from samserve.calls.methods import Method
from samserve.calls.slots import Slots
from samserve.calls.slow_clients import SlowClientTimeout
from samserve.calls.status import Code, Failure
from samserve.calls.timeouts import Timeout, Timeouts
from samserve.context import RequestContext, deadline_exceeded
from samserve.errors import MetadataTooLarge, SamserveError
from samserve.security.authenticator import HEADER, Authenticator
from samserve.security.principal import Principal
from samserve.security.quotas import Quotas
from samserve.security.sessions import SessionAuthenticator
from samserve.settings import DeadlineSettings, ServerSettings
from samserve.stages import StageClock


class Transport(Protocol):
    """One call in a transport: its metadata, its request, and the channel to its client."""

    protocol: str
    """The protocol, as the access log names it."""

    @property
    def metadata(self) -> Metadata:
        """Names and values that the client sent; the same object at each access."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the deadline that the client has set; None if it has set none."""

    def certificate_names(self) -> tuple[str, ...]:
        """Return the names in the verified client certificate; empty if there is none."""

    def set_request_id(self, request_id: str) -> None:
        """Add the request id to the response, whatever its status."""

    async def read(self) -> bytes:
        """Wait for the whole request.  Raises `InvalidRequest` if the client sends none."""

    async def read_next(self) -> bytes | None:
        """Wait for the next message of a client stream; return None at its end.

        Raises ``CancelledError`` if the stream has ended because the client cancelled the call.
        Not called again after the end.
        """

    async def write(self, data: bytes) -> None:
        """Send a response message, and wait until the transport has accepted it."""

    async def fail(self, failure: Failure) -> None:
        """End the call with *failure*; may raise."""


@dataclass(slots=True, eq=False)
class Call:
    """An admitted call: its context, and the transport of its request and response."""

    method: Method
    context: RequestContext
    _transport: Transport
    _admission: Admission
    _server: ServerSettings
    _timeouts: Timeouts
    # Held until the work of the call is done.
    _slots: Slots
    # Set with the first message of a client stream.
    _received: RequestBytes | None = None

    async def receive(self) -> bytes:
        """Return the request.

        The transport buffers an incomplete request, so each waiting call may hold as much memory as
        the largest request: a slow request needs one of a limited number of slots.  Raises
        `DeadlineExceeded` after the timeout, and `Overloaded` if there are too many slow requests,
        or too many bytes of requests.
        """
        context = self.context
        with (
            context.clock.stage("receive"),
            SlowClientTimeout(
                self._timeouts, self._slow_request, self._server.receive_timeout_s, "receive"
            ),
        ):
            data = await self._transport.read()
        context.facts.received_bytes = len(data)
        self._slots.hold(self._admission.admit_bytes(len(data)))
        return data

    async def receive_next(self) -> bytes | None:
        """Return the next message of a client stream; None at its end.

        Each message may take as long as a whole request; see `receive`, also for the errors.  The
        bytes of all messages count as those of the request until the call ends.
        """
        context = self.context
        with (
            context.clock.stage("receive"),
            SlowClientTimeout(
                self._timeouts, self._slow_request, self._server.receive_timeout_s, "receive"
            ),
        ):
            data = await self._transport.read_next()
        if data is not None:
            context.facts.received_bytes += len(data)
            if self._received is None:
                self._received = self._admission.admit_bytes(0)
                self._slots.hold(self._received)
            self._received.add(len(data))
        return data

    async def send(self, data: bytes, *, last: bool) -> None:
        """Send a response message.

        A client may delay the response indefinitely.  After the *last* message the work of the call
        is done: if the client is slow, the call releases its slot and its quota, and takes one of a
        limited number of slots for slow responses instead.  Raises `DeadlineExceeded` after the
        timeout, and `Overloaded` if there are too many slow responses.
        """
        slow = self._slow_response if last else nullcontext
        with (
            self.context.clock.stage("send"),
            SlowClientTimeout(self._timeouts, slow, self._server.send_timeout_s, "send"),
        ):
            await self._transport.write(data)
        self.context.facts.sent_bytes += len(data)

    def _slow_request(self) -> AbstractContextManager[None]:
        # A request of some hundred bytes has no reason to be slow.
        if self.method.small_request:
            raise deadline_exceeded("receive")
        return self._admission.slow_requests.acquire(self.context.tenant)

    @contextmanager
    def _slow_response(self) -> Iterator[None]:
        with self._admission.slow_responses.acquire(self.context.tenant):
            self._slots.release()
            yield


class _Deadline(Timeout):
    """The deadline of a call."""

    __slots__ = ("_clock",)

    def __init__(self, timeouts: Timeouts, seconds: float, clock: StageClock) -> None:
        super().__init__(timeouts, seconds)
        self._clock = clock

    def error(self) -> SamserveError:
        """See `Timeout.error`; names the stage in which the call was cancelled."""
        return deadline_exceeded(self._clock.current)


class CallPipeline:
    """Runs calls: authentication, admission, deadline, and the record of each call."""

    def __init__(
        self,
        authenticator: Authenticator | SessionAuthenticator,
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
        self._timeouts = Timeouts()

    async def run(
        self, method: Method, transport: Transport, serve: Callable[[Call], Awaitable[None]]
    ) -> None:
        """Run *serve* for one call; an exception ends the call with the matching status."""
        too_large = size_error(transport.metadata, self._server.max_metadata_bytes)
        metadata = () if too_large else transport.metadata
        with self._recorder.recording(method, metadata) as record, record.clock.running():
            record.protocol = transport.protocol
            remaining_s = transport.remaining_s
            if remaining_s is None:
                remaining_s = method.deadline_s(self._deadlines)
            deadline = time.monotonic() + remaining_s
            transport.set_request_id(record.request_id)
            try:
                with Slots() as slots, _Deadline(self._timeouts, remaining_s, record.clock):
                    context = self._admit(record, transport, deadline, too_large, slots)
                    call = Call(
                        method,
                        context,
                        transport,
                        self._admission,
                        self._server,
                        self._timeouts,
                        slots,
                    )
                    await serve(call)
            except asyncio.CancelledError:
                record.record_cancellation(deadline - time.monotonic())
                raise
            except Exception as error:  # the only catch-all: nothing internal may reach a client
                await self._fail(error, record, transport)

    def _admit(
        self,
        record: OpenCall,
        transport: Transport,
        deadline: float,
        too_large: MetadataTooLarge | None,
        slots: Slots,
    ) -> RequestContext:
        """Authorize and admit a call, and take its slots.

        Raises *too_large*, `Unauthenticated`, `PermissionDenied`, `Overloaded` or `QuotaExceeded`.
        """
        with record.clock.stage("admit"):
            if too_large is not None:
                raise too_large
            principal = record.principal = self._authenticate(transport)
            method, tenant = record.method, principal.tenant
            principal.require(*method.permissions)
            slots.hold(self._admission.admit(method.name, tenant))
            slots.hold(self._quotas.admit(method.concurrency_limit, tenant, method.name))
            # Released with the slots, so that the metric counts the calls that the limit counts.
            slots.hold(self._recorder.metrics.in_flight(method.name))
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
        return self._authenticator.authenticate(text_values(transport.metadata, HEADER), names)

    async def _fail(self, error: Exception, record: OpenCall, transport: Transport) -> None:
        failure = record.record_error(error)
        if failure.code is Code.INTERNAL:
            self._recorder.log_internal(error, record)
        with record.clock.stage("send"):
            await transport.fail(failure)
