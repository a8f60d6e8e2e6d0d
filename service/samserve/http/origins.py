"""Which requests of browsers are allowed: checks of Host and Origin, and CORS.

Any web page can send requests to a listener on this machine.  Three checks keep those of other
origins out: the name in ``Host`` must be one of the listener (a page whose own name resolves to
127.0.0.1 would else be of the same origin), ``Origin`` and ``Sec-Fetch-Site`` must be those of the
listener itself or of an allowed page, and no method accepts a content type that a form can send.
Other programs send neither of the last two headers.
"""

from __future__ import annotations

import re
from typing import Protocol

from samserve.errors import HostNotAllowed, InvalidRequest, OriginNotAllowed
from samserve.http.request import HttpRequest
from samserve.http.response import Header
from samserve.settings.http import ANY_HOST
from samserve.system.addresses import is_loopback, reachable_host

_SAME = ("", "same-origin", "none")
_PREFLIGHT = "access-control-request-method"
_ALLOWED_METHODS = b"GET, POST"
_ALLOWED_HEADERS = (
    b"authorization, content-type, connect-protocol-version, connect-timeout-ms, grpc-timeout, "
    b"x-grpc-web, x-user-agent, x-request-id, traceparent, tracestate"
)
_EXPOSED_HEADERS = b"x-request-id, retry-after, etag"
_PREFLIGHT_SECONDS = b"7200"
_MAX_SHOWN = 100
# Not a parser of URLs, which would find a name in a user or before a path.
_HOST = re.compile(r"(?:([a-z0-9._-]+)|\[([0-9a-f.]*:[0-9a-f:.]*)\])(?::[0-9]{0,5})?")


class Names(Protocol):
    """The settings of a listener that name it and the pages that may call it."""

    @property
    def host(self) -> str:
        """The address of the listener."""

    @property
    def hosts(self) -> tuple[str, ...]:
        """The further names of the listener, in lower case."""

    @property
    def origins(self) -> tuple[str, ...]:
        """The origins of pages that may call, in lower case."""


class OriginPolicy:
    """Checks requests against `allowed_hosts` and `allowed_origins` of a section of settings."""

    def __init__(self, settings: Names, section: str = "http") -> None:
        self._section = section
        self._hosts = frozenset(settings.hosts)
        self._origins = frozenset(settings.origins)
        self._own = reachable_host(settings.host).lower()

    def check(self, request: HttpRequest, *, linked: bool = False) -> None:
        """Raise `HostNotAllowed`, `OriginNotAllowed` or `InvalidRequest`.

        *linked* also allows that a link on any page leads here.
        """
        host = request.header("host").lower()
        self._check_host(host, request)
        if linked and is_navigation(request):
            return
        origin = request.header("origin").lower()
        if self._allows(origin, request) if origin else self._is_same(request):
            return
        raise OriginNotAllowed(
            f"pages of {_shown(origin) or 'another site'} may not call this listener; "
            f"{self._section}.allowed_origins lists those that may"
        )

    def cors_headers(self, request: HttpRequest) -> list[Header]:
        """Return the headers that let the browser hand a response to a page of another origin."""
        if not self._origins:
            return []
        headers = [(b"vary", b"origin")]
        origin = request.header("origin")
        if origin.lower() in self._origins:
            headers += [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"access-control-expose-headers", _EXPOSED_HEADERS),
            ]
        return headers

    def _check_host(self, host: str, request: HttpRequest) -> None:
        if not host:
            raise InvalidRequest("host", "is missing")
        name = _name(host)
        own = (self._own, request.server[0] if request.server else "")
        allowed = (
            ANY_HOST in self._hosts
            or not self._hosts.isdisjoint((host, name))
            or is_loopback(name)
            or (name != "" and name in own)
        )
        if not allowed:
            raise HostNotAllowed(
                f"{_shown(host)} is not a name of this listener; "
                f"{self._section}.allowed_hosts lists them"
            )

    def _allows(self, origin: str, request: HttpRequest) -> bool:
        if origin in self._origins:
            return True
        own = f"{request.scheme}://{request.header('host').lower()}"
        return origin == own and self._is_same(request)

    def _is_same(self, request: HttpRequest) -> bool:
        return request.header("sec-fetch-site").lower() in _SAME


def is_preflight(request: HttpRequest) -> bool:
    """Return whether a browser asks before it sends a request of a page of another origin."""
    return request.method == "OPTIONS" and request.has(_PREFLIGHT)


def is_navigation(request: HttpRequest) -> bool:
    """Return whether a browser opens the response as a document of its own, which is not read."""
    return (
        request.method == "GET"
        and not request.has("origin")
        and request.header("sec-fetch-mode").lower() == "navigate"
        and request.header("sec-fetch-dest").lower() == "document"
    )


def preflight_headers() -> list[Header]:
    """Return the headers of the answer to a preflight of an allowed origin."""
    return [
        (b"access-control-allow-methods", _ALLOWED_METHODS),
        (b"access-control-allow-headers", _ALLOWED_HEADERS),
        (b"access-control-allow-private-network", b"true"),
        (b"access-control-max-age", _PREFLIGHT_SECONDS),
    ]


def _name(host: str) -> str:
    """Return the host without its port; empty if it is not valid."""
    found = _HOST.fullmatch(host)
    return (found[1] or found[2]) if found else ""


def _shown(text: str) -> str:
    return repr(text[:_MAX_SHOWN]) if text else ""
