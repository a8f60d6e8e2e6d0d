"""The transport of gRPC-Web: gRPC's messages in HTTP/1.1, with the trailers in the body.

The text variant is the same in base64; each part of a response is padded by itself.
"""

from __future__ import annotations

import base64
import binascii
from urllib.parse import quote

from samserve.calls.metadata import REQUEST_ID
from samserve.calls.status import Failure
from samserve.errors import InvalidRequest
from samserve.http.envelopes import PREFIX_BYTES, envelope, only_message
from samserve.http.request import HttpRequest
from samserve.http.response import NO_STORE, HttpResponse
from samserve.http.timeouts import GRPC, grpc_timeout
from samserve.http.transports import HttpTransport, Shape
from samserve.rpc.status import status_of

_TRAILERS = 0x80
# Of a message in trailers, gRPC escapes all but these and letters and digits.
_UNESCAPED = " !\"#$&'()*+,-./:;<=>?@[\\]^_`{|}~"


class GrpcWeb(HttpTransport):
    """A call of gRPC-Web, whose request is one message."""

    def __init__(self, request: HttpRequest, response: HttpResponse, shape: Shape) -> None:
        super().__init__(request, response, *_checked(request))
        self._content_type = shape.content_type.encode("ascii")
        self._limit = shape.limit
        self._text = shape.content_type.startswith("application/grpc-web-text")
        self._request_id = ""
        self._streams = shape.streams

    def set_request_id(self, request_id: str) -> None:
        """See `Transport.set_request_id`; it is a header and a trailer."""
        super().set_request_id(request_id)
        self._request_id = request_id

    async def receive(self) -> bytes:
        """See `HttpTransport.receive`."""
        limit = self._limit + PREFIX_BYTES
        if not self._text:
            return only_message(await self._request.read(limit))
        body = await self._request.read(4 * (limit // 3 + 1))
        try:
            return only_message(base64.b64decode(body, validate=True))
        except binascii.Error as error:
            raise InvalidRequest("request", "is not base64") from error

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        await self._begin()
        if self._streams:
            await self._response.part(self._encoded(envelope(data)))
        else:
            # With the trailers, in one part: two cost almost as much again as the call.
            await self._response.end(self._encoded(envelope(data)) + self._trailers("0", ""))

    async def finish(self) -> None:
        """See `HttpTransport.finish`."""
        if self._streams:
            await self._end("0", "")

    async def send_failure(self, failure: Failure) -> None:
        """See `HttpTransport.send_failure`; the status of HTTP is 200 in any case."""
        details = base64.b64encode(status_of(failure).SerializeToString()).decode("ascii")
        more = {"grpc-status-details-bin": details.rstrip("=")}
        await self._end(str(failure.code.value), failure.message, **more)

    async def _end(self, status: str, message: str, **more: str) -> None:
        await self._begin()
        await self._response.end(self._trailers(status, message, **more))

    def _trailers(self, status: str, message: str, **more: str) -> bytes:
        trailers = {
            "grpc-status": status,
            "grpc-message": quote(message, safe=_UNESCAPED),
            REQUEST_ID: self._request_id,
            **more,
        }
        lines = [f"{name}: {value}\r\n" for name, value in trailers.items() if value]
        return self._encoded(envelope("".join(lines).encode("ascii"), _TRAILERS))

    async def _begin(self) -> None:
        if not self._response.started:
            await self._response.begin(200, self._content_type, (NO_STORE,))

    def _encoded(self, data: bytes) -> bytes:
        return base64.b64encode(data) if self._text else data


def _checked(request: HttpRequest) -> tuple[float | None, InvalidRequest | None]:
    try:
        return grpc_timeout(request.header(GRPC)), None
    except InvalidRequest as error:
        return None, error
