"""Errors of the fetcher.  Texts name the host only: paths and queries may contain credentials."""

from __future__ import annotations

from samserve.errors import DeadlineExceeded, InvalidRequest, Unavailable

_FIELD = "url"


class _Rejected(InvalidRequest):
    """The request must change: another URL, or another image there."""

    def __init__(self, description: str) -> None:
        super().__init__(_FIELD, description)


class UrlNotAllowed(_Rejected):
    """A rule of the section `fetch` forbids the URL, its address, or a redirect."""

    reason = "URL_NOT_ALLOWED"


class DownloadRefused(_Rejected):
    """The server with the image answered that it does not send it, such as 403 or 404."""

    reason = "DOWNLOAD_REFUSED"


class DownloadNotImage(_Rejected):
    """The response, or the `data:` URL, has another type of content, or a compressed one."""

    reason = "DOWNLOAD_NOT_IMAGE"


class DownloadTooLarge(_Rejected):
    """The image has more bytes than `fetch.max_bytes`."""

    reason = "DOWNLOAD_TOO_LARGE"


class DownloadFailed(Unavailable):
    """The server with the image is unreachable, failed, or does not follow HTTP."""

    reason = "DOWNLOAD_FAILED"


class DownloadTimeout(DeadlineExceeded):
    """The server with the image is too slow: `fetch.timeout_s` or `fetch.idle_timeout_s`."""

    reason = "DOWNLOAD_TIMEOUT"
