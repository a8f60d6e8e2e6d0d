"""The ASGI application of the HTTP listener: checks of origins, routes, and refusals."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from typing import Any

import structlog

from samserve.calls.metadata import REQUEST_ID, request_id
from samserve.calls.status import Failure
from samserve.errors import SamserveError
from samserve.http.endpoints import Endpoint
from samserve.http.failures import send_failure, unsupported
from samserve.http.origins import OriginPolicy, is_preflight, preflight_headers
from samserve.http.request import HttpRequest, Receive
from samserve.http.response import HttpResponse, Send

_MAX_SHOWN = 100


class HttpApp:
    """Routes requests by path, or by the folder that the path begins with.

    The folder ``""`` is that of all other paths; without it, these are not found.
    The server must cancel the task of a request when its client disconnects.  *refused* is called
    with the reason of each request that it rejects.  Links of any page may lead to *documents*.
    """

    def __init__(
        self,
        policy: OriginPolicy,
        paths: Mapping[str, Endpoint],
        folders: Mapping[str, Endpoint],
        refused: Callable[[str], None],
        documents: Container[str] = (),
    ) -> None:
        self._policy = policy
        self._paths = paths
        self._folders = folders
        self._refused = refused
        self._documents = documents
        self._log = structlog.get_logger("samserve.http")

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        request, response = HttpRequest(scope, receive), HttpResponse(send)
        try:
            self._policy.check(request, linked=request.path in self._documents)
            response.headers += self._policy.cors_headers(request)
            if is_preflight(request):
                await response.empty(204, preflight_headers())
            else:
                await self._endpoint(request)(request, response)
        except SamserveError as error:
            # Of calls, the pipeline has caught all errors.
            await self._refuse(request, response, error)

    def _endpoint(self, request: HttpRequest) -> Endpoint:
        found = self._paths.get(request.path)
        if found is None:
            folder = request.path[: request.path.find("/", 1) + 1]
            found = self._folders.get(folder) or self._folders.get("", _not_found)
        return found

    async def _refuse(
        self, request: HttpRequest, response: HttpResponse, error: SamserveError
    ) -> None:
        self._refused(error.reason)
        self._log.info(
            "request refused",
            reason=error.reason,
            path=request.path[:_MAX_SHOWN],
            message=error.message,
        )
        number = request_id(request.metadata)
        response.headers.append((REQUEST_ID.encode("ascii"), number.encode("ascii")))
        await send_failure(response, Failure.of(error, number))


async def _not_found(request: HttpRequest, response: HttpResponse) -> None:
    failure = unsupported(
        "nothing is served at this path; methods are at /samserve.v1.SegmentationService/METHOD"
    )
    await send_failure(response, failure, 404)
