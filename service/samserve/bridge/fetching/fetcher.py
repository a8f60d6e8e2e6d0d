"""The guarded fetcher.

One request after another: each URL, that of a redirect too, passes the rules for URLs; its address
passes the rules for addresses when it is connected to.  No proxy, cookie or password of the
environment is used, connections are not reused, and bodies are never decompressed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpcore2

from samserve import __version__
from samserve.bridge.fetching import data_urls
from samserve.bridge.fetching.addresses import AddressRules
from samserve.bridge.fetching.errors import (
    DownloadFailed,
    DownloadNotImage,
    DownloadRefused,
    DownloadTimeout,
    DownloadTooLarge,
    UrlNotAllowed,
)
from samserve.bridge.fetching.network import GuardedNetwork, Resolve, SystemResolver
from samserve.bridge.fetching.settings import FetchSettings
from samserve.bridge.fetching.urls import Target, TrustedOrigin, UrlRules
from samserve.errors import Misconfigured

_OK = 200
_REDIRECTS = (301, 302, 303, 307, 308)
_TOO_MANY_REQUESTS = 429
_SERVER_ERRORS = range(500, 600)
# Pieces of chunked encoding cost time each, however small they are: beyond the first ones, they
# must have this size on average.
_FREE_PIECES = 1024
_BYTES_PER_PIECE = 256
# Many pieces arrive in one read; other calls continue in between.
_PIECES_PER_TURN = 32
# Larger data: URLs are decoded in a thread.
_DECODED_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Fetched:
    """An image: its bytes as they were sent, its content type in lower case without parameters.

    *final_url* is the URL after redirects; it may contain credentials, do not log it.  It is empty
    for a `data:` URL.
    """

    body: bytes
    content_type: str
    final_url: str


class Fetcher:
    """Fetches images by URL within the rules of the section `fetch`.

    *resolve* replaces the resolver of the system.  A fetch holds at most twice `fetch.max_bytes`.
    Raises `Misconfigured` if `fetch.ca_file` is not usable.
    """

    def __init__(self, settings: FetchSettings, *, resolve: Resolve | None = None) -> None:
        self._settings = settings
        self._urls = UrlRules(settings)
        self._addresses = AddressRules(settings.networks)
        self._content_types = frozenset(settings.content_types)
        self._system = SystemResolver()
        self._resolve = self._system if resolve is None else resolve
        self._tls = _tls(settings)

    def close(self) -> None:
        """Stop the threads of the resolver; fetches in progress fail."""
        self._system.close()

    async def fetch(self, url: str, trusted: TrustedOrigin | None = None) -> Fetched:
        """Fetch an image.

        *trusted* is the server that the operator configured for this kind of URL, if there is one;
        a URL of another origin is fetched without its privileges and headers.

        Raises `UrlNotAllowed`, `DownloadRefused`, `DownloadNotImage`, `DownloadTooLarge`,
        `DownloadFailed` or `DownloadTimeout`.
        """
        if data_urls.is_data_url(url):
            return await self._decode(url)
        target = Target.parse(url)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._follow(target, trusted)
        except TimeoutError:
            raise DownloadTimeout(
                f"{target.host}: the image was not received within"
                f" {self._settings.timeout_s:g} s (fetch.timeout_s)"
            ) from None

    async def _decode(self, url: str) -> Fetched:
        self._urls.check_scheme(data_urls.SCHEME)
        limit = self._settings.max_bytes
        if len(url) <= _DECODED_AT_ONCE:
            decoded = data_urls.decode(url, limit)
        else:
            decoded = await asyncio.to_thread(data_urls.decode, url, limit)
        self._check_type(decoded.content_type, "the data: URL")
        return Fetched(decoded.body, decoded.content_type, "")

    async def _follow(self, target: Target, trusted: TrustedOrigin | None) -> Fetched:
        """Request *target*, and follow its redirects."""
        for _ in range(self._settings.max_redirects + 1):
            # Lost for good at the first other origin: what follows was chosen by that one.
            if trusted is not None and not trusted.is_of(target):
                trusted = None
            if trusted is None:
                self._urls.check(target)
            async with self._request(target, trusted) as response:
                if response.status not in _REDIRECTS:
                    return await self._read(target, response)
                target = _redirected(target, response)
        raise UrlNotAllowed(
            f"{target.host}: more than {self._settings.max_redirects} redirects"
            " (fetch.max_redirects)"
        )

    @asynccontextmanager
    async def _request(
        self, target: Target, trusted: TrustedOrigin | None
    ) -> AsyncIterator[httpcore2.Response]:
        """Send a request on a connection of its own, and translate the errors of httpcore2."""
        network = GuardedNetwork(self._addresses, self._resolve, trusted=trusted is not None)
        idle_s = self._settings.idle_timeout_s
        timeouts = dict.fromkeys(("connect", "read", "write", "pool"), idle_s)
        url = httpcore2.URL(
            scheme=target.scheme,
            host=target.host,
            port=target.port,
            target=target.url.raw_path,
        )
        try:
            async with (
                httpcore2.AsyncConnectionPool(self._tls, network_backend=network) as pool,
                pool.stream(
                    "GET",
                    url,
                    headers=_headers(target, {} if trusted is None else trusted.headers),
                    extensions={"timeout": timeouts},
                ) as response,
            ):
                yield response
        except httpcore2.TimeoutException:
            raise DownloadTimeout(
                f"{target.host}: no data within {idle_s:g} s (fetch.idle_timeout_s)"
            ) from None
        except httpcore2.NetworkError as error:
            raise DownloadFailed(f"{target.host}: {_cause(error)}") from error
        except httpcore2.ProtocolError as error:
            raise DownloadFailed(f"{target.host}: the response is not valid HTTP") from error

    async def _read(self, target: Target, response: httpcore2.Response) -> Fetched:
        host, limit = target.host, self._settings.max_bytes
        headers = _by_name(response)
        _check_status(host, response.status)
        content_type = headers.get("content-type", "application/octet-stream")
        content_type = content_type.partition(";")[0].strip().lower()
        self._check_type(content_type, host)
        if headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise DownloadNotImage(f"{host}: the response is compressed")
        too_large = DownloadTooLarge(f"{host}: has more than {limit} bytes (fetch.max_bytes)")
        # httpcore2 has checked that it is a number.
        if int(headers.get("content-length", "0")) > limit:
            raise too_large
        body, pieces = bytearray(), 0
        async for piece in response.aiter_stream():
            body += piece
            pieces += 1
            if len(body) > limit:
                raise too_large
            if pieces > _FREE_PIECES + len(body) // _BYTES_PER_PIECE:
                raise DownloadFailed(f"{host}: the pieces of the response are too small")
            if pieces % _PIECES_PER_TURN == 0:
                await asyncio.sleep(0)
        return Fetched(bytes(body), content_type, str(target.url))

    def _check_type(self, content_type: str, source: str) -> None:
        kind, slash, _ = content_type.partition("/")
        if not {content_type, f"{kind}{slash}*"} & self._content_types:
            shown = content_type if content_type.isprintable() else "this type"
            raise DownloadNotImage(
                f"{source}: {shown[:80]!r} is not an image (fetch.allowed_content_types)"
            )


def _tls(settings: FetchSettings) -> ssl.SSLContext:
    """Return the context of TLS with the authorities of the system and those of `fetch.ca_file`."""
    context = ssl.create_default_context()
    if settings.ca_file is not None:
        try:
            context.load_verify_locations(settings.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise Misconfigured(f"fetch.ca_file {settings.ca_file}: {error.strerror}") from error
    return context


def _headers(target: Target, own: Mapping[str, str]) -> list[tuple[str, str]]:
    host = target.url.netloc.decode("ascii")
    return [
        ("Host", host),
        ("User-Agent", f"samserve/{__version__}"),
        ("Accept", "image/*,*/*;q=0.5"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
        *own.items(),
    ]


def _by_name(response: httpcore2.Response) -> dict[str, str]:
    """Return the headers of a response by name in lower case; of equal names the last one."""
    return {
        name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers
    }


def _redirected(target: Target, response: httpcore2.Response) -> Target:
    location = _by_name(response).get("location")
    if location is None:
        raise DownloadFailed(f"{target.host}: a redirect without an address")
    redirected = Target.parse(location, target.url)
    if (target.scheme, redirected.scheme) == ("https", "http"):
        raise UrlNotAllowed(f"{target.host}: a redirect from https to http is not followed")
    return redirected


def _check_status(host: str, status: int) -> None:
    if status == _TOO_MANY_REQUESTS or status in _SERVER_ERRORS:
        raise DownloadFailed(f"{host}: answered with status {status}")
    if status != _OK:
        raise DownloadRefused(f"{host}: answered with status {status}")


def _cause(error: httpcore2.NetworkError) -> str:
    causes: list[Any] = [error.__cause__, error.__context__]
    for cause in causes:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"the certificate is not valid: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "TLS failed"
    if isinstance(error, httpcore2.ConnectError):
        return "cannot be connected to"
    return "the connection was lost"
