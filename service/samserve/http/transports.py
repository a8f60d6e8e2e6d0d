"""What the transports of Connect and gRPC-Web have in common; see `calls.pipeline.Transport`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from samserve.calls.metadata import REQUEST_ID, Metadata
from samserve.calls.status import Failure
from samserve.errors import InvalidRequest
from samserve.http.failures import send_failure
from samserve.http.request import HttpRequest
from samserve.http.response import HttpResponse

# Timeout for sending an error: a client that does not read would block it for ever.
_FAIL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Shape:
    """The content type of both directions, the limit of one message, and whether they stream."""

    content_type: str
    limit: int
    streams: bool


class HttpTransport:
    """One call over HTTP.

    *remaining_s* is the client's deadline.  *problem* is what is wrong with the headers: an error
    of the call, after its credentials have been checked.
    """

    protocol = "http"

    def __init__(
        self,
        request: HttpRequest,
        response: HttpResponse,
        remaining_s: float | None = None,
        problem: InvalidRequest | None = None,
    ) -> None:
        self.metadata: Metadata = request.metadata
        self.remaining_s = remaining_s
        self._request = request
        self._response = response
        self._problem = problem

    def certificate_names(self) -> tuple[str, ...]:
        """See `Transport.certificate_names`."""
        return self._request.certificate_names

    def set_request_id(self, request_id: str) -> None:
        """See `Transport.set_request_id`."""
        header = (REQUEST_ID.encode("ascii"), request_id.encode("ascii"))
        self._response.headers.append(header)

    async def read(self) -> bytes:
        """See `Transport.read`."""
        if self._problem is not None:
            raise self._problem
        return await self.receive()

    async def receive(self) -> bytes:
        """Return the request."""
        return b""

    async def read_next(self) -> bytes | None:
        """See `Transport.read_next`."""
        raise NotImplementedError

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        raise NotImplementedError

    async def finish(self) -> None:
        """End the response, after all messages."""

    async def fail(self, failure: Failure) -> None:
        """See `Transport.fail`."""
        try:
            async with asyncio.timeout(_FAIL_TIMEOUT_S):
                await self.send_failure(failure)
        except TimeoutError:
            # The end of the task closes the connection.
            raise asyncio.CancelledError from None

    async def send_failure(self, failure: Failure) -> None:
        """Send a failure; of a response that has begun, it can only be the end."""
        if self._response.started:
            raise asyncio.CancelledError
        await send_failure(self._response, failure)
