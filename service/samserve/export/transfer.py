"""One attempt to get the rest of a file over HTTP, and the rule which URLs may be asked."""

from __future__ import annotations

import ipaddress
import re
import shutil
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from urllib.parse import urljoin

from urllib3 import BaseHTTPResponse, PoolManager, Timeout
from urllib3.exceptions import HTTPError, LocationParseError
from urllib3.util import Url, parse_url

import samserve
from samserve.export.errors import ExportError
from samserve.export.part import Origin, Part

MOST_REDIRECTS = 5

_TIMEOUT = Timeout(connect=15.0, read=60.0)
_BLOCK = 1 << 16
_ANSWERS_TO_RANGE = (HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+)")


class Interrupted(Exception):
    """The file is not complete, and another attempt may help; the text says why."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted.

    ``judged`` says that a checksum is known, so that a wrong mixture of bytes is found out.
    ``progress`` is called with the bytes of the part and those of the whole, if known.
    """

    url: str
    judged: bool
    max_bytes: int
    progress: Callable[[int, int | None], None]


def check_url(url: str) -> Url:
    """Parse a URL that may be asked; raises `ExportError` for any other.

    That is https, or plain http towards this machine, and without a user or a password.
    """
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        # Not shown: what cannot be parsed cannot be rid of its secrets.
        raise ExportError("not a URL") from error
    if parsed.auth:
        raise ExportError(f"{shown(url)}: credentials in URLs are refused")
    if not parsed.host:
        raise ExportError(f"{shown(url)}: only https is allowed, and this names no host")
    if parsed.scheme != "https" and not (parsed.scheme == "http" and _is_loopback(parsed.host)):
        raise ExportError(f"{shown(url)}: only https is allowed")
    return parsed


def file_name(url: str) -> str:
    """Take the last part of the path of a URL; raises `ExportError` if it makes no file name."""
    name = (check_url(url).path or "").rpartition("/")[2]
    if not _FILE_NAME.fullmatch(name):
        raise ExportError(f"{shown(url)}: {name!r} at its end is no file name")
    return name


def shown(url: str) -> str:
    """Write a URL for people: without credentials and the query, which may hold some."""
    parsed = parse_url(url)
    text = Url(parsed.scheme, None, parsed.host, parsed.port, parsed.path).url
    return text if text.isprintable() else repr(text)


def resumable(part: Part, request: Request) -> Origin | None:
    """Tell where the bytes of a part came from, if more of them can be appended.

    For that their number must be known, and either the server's validator, or a checksum that
    judges the result: without both, the file may have become another one in between.
    """
    origin = part.origin(request.url)
    if origin is None or origin.total is None or part.size > origin.total:
        return None
    return origin if origin.validator or request.judged else None


def transfer(request: Request, part: Part) -> None:
    """Complete a part, from where it is.

    Raises `Interrupted` if another attempt may help, `ExportError` if not, `OSError` of the disk.
    """
    try:
        # No connection outlives its attempt: it may have broken, or carry more than was announced.
        with _open_pool() as pool:
            _attempt(pool, request, part)
    except HTTPError as error:
        if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args):
            raise ExportError(f"{shown(request.url)}: {_one_line(error.args[0])}") from error
        raise Interrupted(_one_line(error.__cause__ or error.__context__ or error)) from error


def _open_pool() -> PoolManager:
    """Open a client that verifies certificates against the authorities of the system."""
    headers = {"User-Agent": f"samserve/{samserve.__version__}", "Accept-Encoding": "identity"}
    return PoolManager(headers=headers, timeout=_TIMEOUT, ssl_context=ssl.create_default_context())


def _attempt(pool: PoolManager, request: Request, part: Part) -> None:
    origin = resumable(part, request)
    url, response = _follow(pool, request.url, _range_headers(part, origin))
    with response:
        if response.status == HTTPStatus.OK:
            whole = _whole(response, request)
            _check_size(whole.total, request, part)
            part.begin(whole)
            _receive(response, request, part, whole.total)
            return
        if origin is None or response.status not in _ANSWERS_TO_RANGE:
            raise _refusal(url, response.status)
        if _goes_on(response, origin, part.size):
            _check_size(origin.total, request, part)
            if response.status == HTTPStatus.PARTIAL_CONTENT:
                _receive(response, request, part, origin.total)
            return
    # What there is does not fit what the server has: without it, the whole is asked for.
    part.delete()
    _attempt(pool, request, part)


def _follow(pool: PoolManager, url: str, headers: dict[str, str]) -> tuple[str, BaseHTTPResponse]:
    """Follow redirects by hand: every URL must obey the rule before it is asked."""
    asked_here = _is_loopback(check_url(url).host or "")
    for _ in range(MOST_REDIRECTS + 1):
        # A stranger shall not make this machine ask itself.
        if _is_loopback(check_url(url).host or "") and not asked_here:
            raise ExportError(f"{shown(url)}: redirected from elsewhere to this machine")
        response = pool.request(
            "GET",
            url,
            headers={**pool.headers, **headers},
            redirect=False,
            retries=False,
            preload_content=False,
        )
        location = response.get_redirect_location()
        if not location:
            return url, response
        response.close()
        try:
            url = parse_url(urljoin(url, location)).url
        except ValueError as error:
            raise ExportError(f"{shown(url)}: redirected to what is no URL") from error
    raise ExportError(f"{shown(url)}: more than {MOST_REDIRECTS} redirects")


def _range_headers(part: Part, origin: Origin | None) -> dict[str, str]:
    if origin is None:
        return {}
    condition = {"If-Range": origin.validator} if origin.validator else {}
    return {"Range": f"bytes={part.size}-", **condition}


def _whole(response: BaseHTTPResponse, request: Request) -> Origin:
    """Describe a whole body; raises `ExportError` for one that cannot be kept as it comes."""
    total = response.length_remaining
    if total is None and not response.chunked and not request.judged:
        raise ExportError(
            f"{shown(request.url)}: the server tells no size, so that a cut file would look whole; "
            "this needs a checksum"
        )
    encoding = response.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise ExportError(f"{shown(request.url)}: comes encoded as {encoding!r}, unasked")
    return Origin(request.url, _validator(response), total)


def _validator(response: BaseHTTPResponse) -> str | None:
    """Find a strong one, which no two versions share (RFC 9110, 8.8 and 13.1.5).

    A Last-Modified is one only without an ETag, and if it is older than the answer by a second:
    later in its own second the file may have changed once more.
    """
    tag = response.headers.get("ETag")
    if tag is not None:
        return tag if tag.startswith('"') else None
    modified = response.headers.get("Last-Modified", "")
    try:
        age = _seconds(response.headers.get("Date", "")) - _seconds(modified)
    except ValueError:
        return None
    return modified if age >= 1 else None


def _goes_on(response: BaseHTTPResponse, origin: Origin, offset: int) -> bool:
    """Tell whether a body of a range, or its absence, continues a part of *offset* bytes."""
    found = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    start, total = found.groups() if found else (None, None)
    if origin.validator and _validator(response) not in (None, origin.validator):
        return False
    if response.status == HTTPStatus.PARTIAL_CONTENT:
        return (start, total) == (str(offset), str(origin.total))
    return offset == origin.total and total in (None, str(origin.total))


def _check_size(total: int | None, request: Request, part: Part) -> None:
    """Refuse what is too large, before any of it is written."""
    if total is None:
        return
    if total > request.max_bytes:
        part.delete()
        raise _too_large(request, f"{total} bytes", request.max_bytes)
    # Holds for a part that is replaced too: its bytes become free.
    missing, free = total - part.size, shutil.disk_usage(part.path.parent).free
    if missing > free:
        raise ExportError(f"{part.path.parent}: {missing} bytes are needed, {free} are free")


def _receive(response: BaseHTTPResponse, request: Request, part: Part, total: int | None) -> None:
    """Append a body to a part; one that grows beyond its bound is deleted."""
    done, bound = part.size, request.max_bytes if total is None else total
    request.progress(done, total)
    with part.path.open("ab") as file:
        for block in response.stream(_BLOCK, decode_content=False):
            done += len(block)
            if done > bound:
                break
            file.write(block)
            request.progress(done, total)
    if done > bound:
        part.delete()
        raise _too_large(request, "the body goes on", bound)
    if total is not None and done < total:
        raise Interrupted("the server sent less than it announced")


def _too_large(request: Request, text: str, bound: int) -> ExportError:
    return ExportError(f"{shown(request.url)}: {text}, beyond the {bound} that are allowed")


def _refusal(url: str, status: int) -> Exception:
    text = f"the server answered {status} {responses.get(status, '')}".rstrip()
    again = status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return Interrupted(text) if again else ExportError(f"{shown(url)}: {text}")


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _seconds(date: str) -> float:
    return parsedate_to_datetime(date).timestamp()


def _one_line(error: object) -> str:
    return " ".join(str(error).split())
