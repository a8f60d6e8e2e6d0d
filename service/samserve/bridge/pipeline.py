"""The middleware of all tools: credentials, limits, deadline, errors, log line and metrics.

The pipeline of the server's calls is not used here: its permissions, quotas and stages belong to
the gateways, which check every call that the bridge makes.  As there, credentials are verified and
a slot is taken before the body is read, and an internal error reveals its request id only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

import structlog

from samserve.bridge.caller import Caller
from samserve.bridge.credentials import Credentials
from samserve.bridge.failures import failure_of
from samserve.bridge.gateways import Gateways
from samserve.bridge.routing import Found, Routing
from samserve.bridge.settings import BridgeSettings
from samserve.bridge.tool import BridgeRequest, Reply, Tool, query_of
from samserve.calls.metadata import REQUEST_ID, request_id
from samserve.calls.status import Code
from samserve.context import deadline_exceeded
from samserve.errors import InvalidRequest, Overloaded
from samserve.http.failures import headers_of, send_failure, unsupported
from samserve.http.request import HttpRequest, too_large
from samserve.http.response import HttpResponse
from samserve.telemetry.metrics.bridge import BridgeMetrics

_now = time.monotonic


@dataclass(slots=True, eq=False)
class _Record:
    """What is logged and counted of a request; the code is that of a success by default."""

    found: Found
    request_id: str
    started: float
    code: Code = Code.OK
    reason: str = ""
    caller: str = ""
    received: int = 0
    sent: int = 0


class BridgePipeline:
    """Serves the routes of all tools; an `Endpoint` of `HttpApp`."""

    def __init__(
        self,
        tools: Iterable[Tool],
        credentials: Credentials,
        gateways: Gateways,
        settings: BridgeSettings,
        metrics: BridgeMetrics,
    ) -> None:
        self._routing = Routing(tools)
        self._credentials = credentials
        self._gateways = gateways
        self._settings = settings
        self._metrics = metrics
        self._in_flight = 0
        self._bytes = 0
        self._log = structlog.get_logger("samserve.bridge.request")
        for tool, routes in self._routing.names():
            metrics.declare(tool, routes)

    def bytes_in_flight(self) -> int:
        """Return the received bytes of all requests in flight."""
        return self._bytes

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        """Serve one request."""
        found = self._routing.find(request.method, request.path)
        if isinstance(found, Found):
            await self._run(found, request, response)
            return
        number = request_id(request.metadata)
        response.headers.append((REQUEST_ID.encode("ascii"), number.encode("ascii")))
        if found:
            failure = unsupported(f"this path is for {found}")
            await send_failure(response, failure, 405, (b"allow", found.encode("ascii")))
        else:
            text = f"nothing is served at this path; tools are at {self._routing.folders}"
            await send_failure(response, unsupported(text), 404)

    async def _run(self, found: Found, request: HttpRequest, response: HttpResponse) -> None:
        number = request_id(request.metadata)
        response.headers.append((REQUEST_ID.encode("ascii"), number.encode("ascii")))
        record = _Record(found, number, _now())
        try:
            with self._metrics.in_flight(found.tool.name):
                reply = await self._reply(record, request)
                record.sent = len(reply.body)
                response.reason = reply.reason
                await response.whole(reply.status, reply.content_type, reply.body, reply.headers)
        except asyncio.CancelledError:
            record.code = Code.CANCELLED
            raise
        finally:
            self._publish(record)

    async def _reply(self, record: _Record, request: HttpRequest) -> Reply:
        """Return the tool's response, which may be that of a failure."""
        route = record.found.route
        deadline_s = route.deadline_s or self._settings.limits.deadline_s
        try:
            async with _deadline(deadline_s):
                return await self._serve(record, request)
        except Exception as error:  # as in the pipeline of calls: nothing internal may be shown
            failure = failure_of(error, record.request_id)
            record.code, record.reason = failure.code, failure.reason
            if failure.code is Code.INTERNAL:
                self._log.error("internal error", request_id=record.request_id, exc_info=error)
            reply = record.found.tool.failure(failure)
            return replace(reply, headers=(*reply.headers, *headers_of(failure)))

    async def _serve(self, record: _Record, request: HttpRequest) -> Reply:
        route = record.found.route
        caller = Caller(request_id=record.request_id)
        with self._slot():
            if not route.public:
                caller = self._credentials.find(request, record.request_id)
                record.caller = caller.name
                await self._gateways.verify(caller)
            with self._counting(record):
                body = await self._receive(request, record)
                return await route.handler(
                    BridgeRequest(
                        method=request.method,
                        path=request.path,
                        rest=record.found.rest,
                        query=query_of(request.query),
                        headers={name: str(value) for name, value in request.metadata},
                        body=body,
                        caller=caller,
                    )
                )

    @contextmanager
    def _slot(self) -> Iterator[None]:
        limit = self._settings.limits.max_concurrent_requests
        if self._in_flight >= limit:
            raise Overloaded(
                f"the limit of {limit} concurrent requests is reached",
                metadata={"limit": str(limit), "resource": "requests"},
            )
        self._in_flight += 1
        try:
            yield
        finally:
            self._in_flight -= 1

    @contextmanager
    def _counting(self, record: _Record) -> Iterator[None]:
        """Count the bytes of a request until it has ended."""
        try:
            yield
        finally:
            self._bytes -= record.received

    async def _receive(self, request: HttpRequest, record: _Record) -> bytes:
        """Return the body, within the limits of one request and of all.

        Raises `InvalidRequest`, `Overloaded` or `DeadlineExceeded`.
        """
        _check_declared(request, self._settings.limits.max_request_bytes)
        try:
            async with asyncio.timeout(self._settings.listener.receive_timeout_s):
                return await self._receive_all(request, record)
        except TimeoutError:
            raise deadline_exceeded("receive") from None

    async def _receive_all(self, request: HttpRequest, record: _Record) -> bytes:
        limit, body, more = self._settings.limits.max_request_bytes, bytearray(), True
        while more:
            part, more = await request.read_some()
            self._admit(len(part), record)
            body += part
            if len(body) > limit:
                raise too_large(limit)
        return bytes(body)

    def _admit(self, nbytes: int, record: _Record) -> None:
        limit = self._settings.limits.max_in_flight_request_bytes
        # A request over the whole budget is admitted alone: its size has a limit of its own.
        if self._bytes > record.received and self._bytes + nbytes > limit:
            raise Overloaded(
                f"the limit of {limit} bytes of concurrent requests is reached",
                metadata={"limit": str(limit), "resource": "request_bytes"},
            )
        self._bytes += nbytes
        record.received += nbytes

    def _publish(self, record: _Record) -> None:
        seconds = _now() - record.started
        tool, route = record.found.tool.name, record.found.route.name
        code = record.code.name
        self._metrics.record(tool, route, code, seconds, (record.received, record.sent))
        self._log.info(
            "request",
            tool=tool,
            route=route,
            code=code,
            reason=record.reason or None,
            duration_ms=round(seconds * 1e5) / 100,
            received_bytes=record.received,
            sent_bytes=record.sent,
            caller=record.caller or None,
            request_id=record.request_id,
        )


def _check_declared(request: HttpRequest, limit: int) -> None:
    """Raise `InvalidRequest` for a body that is compressed, or declared to be too large."""
    if request.header("content-encoding").lower() not in ("", "identity"):
        raise InvalidRequest("content-encoding", "compressed requests are not accepted")
    declared = request.header("content-length")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large(limit)


@asynccontextmanager
async def _deadline(seconds: float) -> AsyncIterator[None]:
    """Cancel the work of the block after *seconds* and raise `DeadlineExceeded`."""
    try:
        async with asyncio.timeout(seconds) as scope:
            yield
    except TimeoutError:
        if not scope.expired():
            raise
        raise deadline_exceeded("request") from None
