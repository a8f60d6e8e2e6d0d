"""The endpoints of the web page: ``GET`` its files, and ``POST /web/session``."""

from __future__ import annotations

import asyncio
import json
import re

import structlog

from samserve.errors import DeadlineExceeded, InvalidRequest
from samserve.http.failures import JSON, send_failure, unsupported
from samserve.http.request import HttpRequest
from samserve.http.response import Header, HttpResponse
from samserve.http.web.files import PageFile, PageFiles
from samserve.security.sessions import Sessions

SESSION = "/web/session"

PAGE_HEADERS: tuple[Header, ...] = (
    (b"x-content-type-options", b"nosniff"),
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; worker-src 'self'; "
        b"connect-src 'self'; img-src 'self' blob:; style-src 'self'; base-uri 'none'; "
        b"form-action 'none'; frame-ancestors 'none'",
    ),
    # Isolated from all other pages, so that its scripts may share memory between threads.
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-embedder-policy", b"require-corp"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
)
"""Of every file: scripts of workers need them as documents do."""

_METHODS = ("GET", "HEAD")
_ALLOWED: Header = (b"allow", b"GET, HEAD")
# A client that reads nothing holds no more than this, and what the connection buffers.
_PART_BYTES = 64 << 10
_DEADLINE_S = 900.0
_GZIP = re.compile(r"(?:^|,)\s*gzip\s*(?:$|,|;\s*q=(?!0(?:\.0*)?\s*(?:$|,)))", re.IGNORECASE)

_MAX_BODY_BYTES = 1024
_RECEIVE_TIMEOUT_S = 5.0


class PageEndpoint:
    """Serves the files of the page, which are public; they contain nothing of the server."""

    def __init__(self, files: PageFiles) -> None:
        self._files = files
        self._log = structlog.get_logger("samserve.http")

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        """Send one file."""
        if request.method not in _METHODS:
            failure = unsupported("files of the page are read with GET")
            await send_failure(response, failure, 405, _ALLOWED)
            return
        file = self._files[request.path]
        response.security = PAGE_HEADERS
        encoded = bool(file.compressed) and bool(_GZIP.search(request.header("accept-encoding")))
        headers = list(_caching(file, encoded=encoded))
        known = _is_known(headers, request.header("if-none-match"))
        self._log.debug("page file", path=request.path, status=304 if known else file.status)
        if known:
            await response.empty(304, headers)
            return
        body = file.compressed if encoded else file.content
        headers.append((b"content-length", b"%d" % len(body)))
        await response.begin(file.status, file.content_type, headers)
        await _send(response, b"" if request.method == "HEAD" else body)


def _caching(file: PageFile, *, encoded: bool) -> list[Header]:
    """Return the headers that a cache needs, which a response without content has as well."""
    headers = [(b"cache-control", file.caching)]
    if file.digest:
        suffix = "-gzip" if encoded else ""
        headers.append((b"etag", f'"{file.digest}{suffix}"'.encode("ascii")))
    if file.compressed:
        headers.append((b"vary", b"accept-encoding"))
    if encoded:
        headers.append((b"content-encoding", b"gzip"))
    return headers


def _is_known(headers: list[Header], condition: str) -> bool:
    """Return whether the client has this content, by its ``If-None-Match``."""
    etag = dict(headers).get(b"etag", b"").decode("ascii")
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return etag != "" and ("*" in tags or etag in tags)


async def _send(response: HttpResponse, body: bytes) -> None:
    """Send a body as fast as the client accepts it; each part has the connection's timeout."""
    try:
        async with asyncio.timeout(_DEADLINE_S):
            for start in range(0, len(body), _PART_BYTES):
                await response.part(body[start : start + _PART_BYTES])
                # Other calls continue meanwhile.
                await asyncio.sleep(0)
            await response.end(b"")
    except TimeoutError:
        # The end of the task closes the connection.
        raise asyncio.CancelledError from None


class SessionEndpoint:
    """Exchanges the token of the printed address for the credential of a session."""

    def __init__(self, sessions: Sessions | None) -> None:
        self._sessions = sessions

    async def __call__(self, request: HttpRequest, response: HttpResponse) -> None:
        """Begin a session.  Raises `SessionTokenInvalid`, `InvalidRequest`, `DeadlineExceeded`."""
        if request.method != "POST":
            failure = unsupported("a session begins with POST")
            await send_failure(response, failure, 405, (b"allow", b"POST"))
        elif self._sessions is None:
            failure = unsupported("calls need an API key, a token or a certificate, not a session")
            await send_failure(response, failure, 404)
        elif request.header("content-type").partition(";")[0].strip().lower() != JSON.decode():
            # Of another type, the page of a foreign origin could send it without a preflight.
            failure = unsupported("the content type must be application/json")
            await send_failure(response, failure, 415, (b"accept-post", JSON))
        else:
            credential = self._sessions.exchange(_token(await _receive(request)))
            await response.whole(200, JSON, json.dumps({"credential": credential}).encode())


async def _receive(request: HttpRequest) -> bytes:
    try:
        async with asyncio.timeout(_RECEIVE_TIMEOUT_S):
            return await request.read(_MAX_BODY_BYTES)
    except TimeoutError:
        text = f"the request did not arrive within {_RECEIVE_TIMEOUT_S:g} s"
        raise DeadlineExceeded(text, metadata={"stage": "receive"}) from None


def _token(body: bytes) -> str:
    """Return the token in a body; errors do not repeat its content."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("request", "is not valid JSON") from None
    token = found.get("token") if isinstance(found, dict) else None
    if not isinstance(token, str):
        raise InvalidRequest("token", "is missing, or is not a string")
    return token
