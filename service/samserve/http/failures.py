"""Failures in HTTP: status codes, and the JSON of errors, both as in the Connect protocol."""

from __future__ import annotations

import base64
import math
from typing import Any

from samserve.calls.status import Code, Failure
from samserve.http.response import Header, HttpResponse
from samserve.rpc.codecs import as_json
from samserve.rpc.status import readable_details, status_of

JSON = b"application/json"
UNSUPPORTED = "UNSUPPORTED_HTTP_REQUEST"
"""The reason of requests that no path, method or content type of the listener matches."""

# From the table of codes in the specification of Connect.
_STATUSES = {
    Code.CANCELLED: 499,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.UNAUTHENTICATED: 401,
}


def unsupported(message: str) -> Failure:
    """Return the failure of a request that this listener does not serve."""
    return Failure(Code.UNIMPLEMENTED, UNSUPPORTED, message, {})


def http_status(failure: Failure) -> int:
    """Return the status code of a failure."""
    return _STATUSES[failure.code]


def headers_of(failure: Failure) -> list[Header]:
    """Return headers for clients that know only HTTP."""
    if failure.code is Code.UNAUTHENTICATED:
        return [(b"www-authenticate", b"Bearer")]
    if failure.retry_after_s is not None:
        return [(b"retry-after", b"%d" % math.ceil(failure.retry_after_s))]
    return []


def error_json(failure: Failure) -> dict[str, Any]:
    """Return the error as Connect has it; ``debug`` is for people, and not base64."""
    code = "canceled" if failure.code is Code.CANCELLED else failure.code.name.lower()
    status = status_of(failure)
    details = [
        {
            "type": detail.type_url.rpartition("/")[2],
            "value": base64.b64encode(detail.value).decode("ascii").rstrip("="),
            "debug": debug,
        }
        for detail, debug in zip(status.details, readable_details(status), strict=True)
    ]
    return {"code": code, "message": failure.message, "details": details}


async def send_failure(
    response: HttpResponse, failure: Failure, status: int | None = None, *headers: Header
) -> None:
    """Send a failure as the whole response, with another status than that of its code if given."""
    body = as_json(error_json(failure))
    status = http_status(failure) if status is None else status
    await response.whole(status, JSON, body, (*headers_of(failure), *headers))
