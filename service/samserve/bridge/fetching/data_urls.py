"""Images in the URL itself: `data:image/png;base64,...` (RFC 2397)."""

from __future__ import annotations

import base64
import binascii
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from samserve.bridge.fetching.errors import DownloadNotImage, DownloadTooLarge

SCHEME = "data"

_PREFIX = "data:"
_MAX_HEADER_CHARACTERS = 256


class DataUrl(NamedTuple):
    """The content of a `data:` URL."""

    body: bytes
    content_type: str


def is_data_url(url: str) -> bool:
    """Return whether a URL has the scheme `data`."""
    return url[: len(_PREFIX)].lower() == _PREFIX


def decode(url: str, max_bytes: int) -> DataUrl:
    """Decode a `data:` URL with base64.

    Raises `DownloadTooLarge` before anything is decoded, and `DownloadNotImage` if the URL is not
    complete.
    """
    header, comma, _ = url[: _MAX_HEADER_CHARACTERS + 1].partition(",")
    media_type, *parameters = (part.strip().lower() for part in header[len(_PREFIX) :].split(";"))
    if not comma or not parameters or parameters[-1] != "base64":
        raise DownloadNotImage("a data: URL must begin with data:TYPE;base64,")
    start = len(header) + 1
    # Four characters are three bytes; each may be written as %XX.
    most = (max_bytes + 2) // 3 * 4
    escaped = url.find("%", start) >= 0
    if len(url) - start > (3 * most if escaped else most):
        raise DownloadTooLarge(f"has more than {max_bytes} bytes (fetch.max_bytes)")
    try:
        encoded = url[start:].encode("ascii")
        body = base64.b64decode(unquote_to_bytes(encoded) if escaped else encoded, validate=True)
    except (binascii.Error, UnicodeEncodeError):
        raise DownloadNotImage("the data: URL is not base64") from None
    if len(body) > max_bytes:
        raise DownloadTooLarge(f"has more than {max_bytes} bytes (fetch.max_bytes)")
    return DataUrl(body, media_type or "text/plain")
