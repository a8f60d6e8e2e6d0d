"""The transports of the Connect protocol (connectrpc.com/docs/protocol): unary, and streams."""

from __future__ import annotations

from samserve.calls.status import Failure
from samserve.errors import InvalidRequest
from samserve.http.envelopes import PREFIX_BYTES, Envelopes, envelope, only_message
from samserve.http.failures import error_json
from samserve.http.request import HttpRequest
from samserve.http.response import NO_STORE, HttpResponse
from samserve.http.timeouts import CONNECT, connect_timeout
from samserve.http.transports import HttpTransport, Shape
from samserve.rpc.codecs import as_json

VERSION = "connect-protocol-version"
_END = 0x02


class ConnectUnary(HttpTransport):
    """A call with one message in each direction, which are the bodies; also plain JSON."""

    def __init__(self, request: HttpRequest, response: HttpResponse, shape: Shape) -> None:
        super().__init__(request, response, *_checked(request))
        self._content_type = shape.content_type.encode("ascii")
        self._limit = shape.limit

    async def receive(self) -> bytes:
        """See `HttpTransport.receive`."""
        return await self._request.read(self._limit)

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await self._response.whole(200, self._content_type, data)


class ConnectStream(HttpTransport):
    """A call with a stream in one direction; each message is in an envelope."""

    def __init__(self, request: HttpRequest, response: HttpResponse, shape: Shape) -> None:
        super().__init__(request, response, *_checked(request))
        self._content_type = shape.content_type.encode("ascii")
        self._limit = shape.limit
        self._messages = Envelopes(request, shape.limit)

    async def receive(self) -> bytes:
        """See `HttpTransport.receive`."""
        return only_message(await self._request.read(self._limit + PREFIX_BYTES))

    async def read_next(self) -> bytes | None:
        """See `Transport.read_next`."""
        if self._problem is not None:
            raise self._problem
        return await self._messages.next()

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await self._begin()
        await self._response.part(envelope(data))

    async def finish(self) -> None:
        """See `HttpTransport.finish`."""
        await self._begin()
        await self._response.end(envelope(b"{}", _END))

    async def send_failure(self, failure: Failure) -> None:
        """See `HttpTransport.send_failure`; the status of HTTP is 200 in any case."""
        await self._begin()
        await self._response.end(envelope(as_json({"error": error_json(failure)}), _END))

    async def _begin(self) -> None:
        if not self._response.started:
            await self._response.begin(200, self._content_type, (NO_STORE,))


def _checked(request: HttpRequest) -> tuple[float | None, InvalidRequest | None]:
    """Return the deadline, and what is wrong with the headers."""
    try:
        if request.header(VERSION) not in ("", "1"):
            raise InvalidRequest(VERSION, "must be 1")
        return connect_timeout(request.header(CONNECT)), None
    except InvalidRequest as error:
        return None, error
