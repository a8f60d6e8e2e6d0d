"""Downloading a checkpoint from a URL with pooch: verified, and visible only when complete."""

from __future__ import annotations

import hashlib
import os
import re
import ssl
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urljoin

import pooch
import requests
from filelock import FileLock
from urllib3.exceptions import LocationParseError
from urllib3.util import Url, parse_url

import samserve
from samserve.export.errors import ExportError

MAX_BYTES = 8 << 30
RETRIES = 4
"""Attempts after the first one, for broken connections and responses of 429 or 5xx."""

_LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|\[::1\]", re.ASCII)
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_CHECKSUM = re.compile(r"sha256:[0-9a-f]{64}|git-blob-sha1:[0-9a-f]{40}")
_CAS = ssl.get_default_verify_paths()
_HEADERS = {"User-Agent": f"samserve/{samserve.__version__}", "Accept-Encoding": "identity"}

_NO_HEADERS: Mapping[str, str] = {}

Progress = Callable[[int, int | None], None]


def check_url(url: str) -> Url:
    """Parse a URL.  Raises `ExportError` unless it is https or http to loopback, without a user."""
    try:
        parsed = parse_url(url)
    except LocationParseError as error:
        raise ExportError("not a URL") from error  # not quoted: it may contain secrets
    if parsed.auth:
        raise ExportError(f"{shown(url)}: credentials in URLs are not allowed")
    local = parsed.scheme == "http" and _LOOPBACK.fullmatch(parsed.host or "")
    if not (local or (parsed.scheme == "https" and parsed.host)):
        raise ExportError(f"{shown(url)}: only https is allowed")
    return parsed


def file_name(url: str) -> str:
    """Return the last part of the path of a URL.  Raises `ExportError` if it is not a file name."""
    name = (check_url(url).path or "").rpartition("/")[2]
    if not _FILE_NAME.fullmatch(name):
        raise ExportError(f"{shown(url)}: the path must end in a file name, not {name!r}")
    return name


def shown(url: str) -> str:
    """Return a URL without credentials, and without the query, which may contain some."""
    parsed = parse_url(url)
    text = Url(parsed.scheme, None, parsed.host, parsed.port, parsed.path).url
    return text if text.isprintable() else repr(text)


def parse_checksum(text: str) -> str:
    """Return ``sha256:<64 digits>`` or ``git-blob-sha1:<40 digits>``, hexadecimal in lower case.

    Digits without a prefix are a SHA-256.  Raises `ExportError` for anything else.
    """
    checksum = (text if ":" in text else f"sha256:{text}").lower()
    if not _CHECKSUM.fullmatch(checksum):
        raise ExportError(
            f"checksum {text!r}: expected the 64 hexadecimal digits of a SHA-256, "
            "or 'git-blob-sha1', a colon and 40"
        )
    return checksum


def checksum_of(path: Path, kind: str = "sha256") -> str:
    """Compute the checksum of a file, of one of the kinds of `parse_checksum`.

    git identifies a content by the SHA-1 of ``b"blob <size>\\0"`` and the content.
    """
    blob = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, blob.copy if kind == "git-blob-sha1" else "sha256")
    return f"{kind}:{digest.hexdigest()}"


def download(
    url: str,
    folder: Path,
    checksum: str | None,
    progress: Progress,
    max_bytes: int = MAX_BYTES,
    headers: Mapping[str, str] = _NO_HEADERS,
) -> Path:
    """Download *url* into *folder*, which is created, under the last part of the URL's path.

    *checksum* is as returned by `parse_checksum`.  *progress* is called with the received bytes and
    the total, None if that is unknown.  An existing file is only verified.  Until a file is
    complete and verified, its name is ``<name>.part``; with a checksum, which verifies the result,
    this or a later call resumes it.  *headers* are added to requests; a redirect to another host
    drops credentials in them.  Raises `ExportError`, with a text of one line.
    """
    name = file_name(url)
    target = folder / name
    transfer = _Transfer(folder / f"{name}.part", checksum, progress, max_bytes, headers)
    pooch.get_logger().setLevel("ERROR")  # its log messages contain the whole URL
    try:
        if not target.exists():
            folder.mkdir(parents=True, exist_ok=True)
            fetcher = pooch.Pooch(folder, "", {name: None}, {name: url}, retry_if_failed=RETRIES)
            with FileLock(folder / ".lock"):
                fetcher.fetch(name, downloader=transfer)
        _verify(target, checksum, "delete it to download it again")
    except (requests.RequestException, ValueError) as error:
        again = "resume" if checksum else "start over"
        raise ExportError(
            f"{shown(url)}: {transfer.done} of {transfer.size or 'an unknown number of'} bytes "
            f"received ({_reason(error)}); run the command again to {again}"
        ) from error
    except OSError as error:
        raise ExportError(f"{error.filename or target}: {error.strerror or error}") from error
    return target


class _Transfer:
    """Called by pooch for each attempt; also serves as the progress bar of its HTTP client."""

    def __init__(
        self,
        part: Path,
        checksum: str | None,
        progress: Progress,
        max_bytes: int,
        headers: Mapping[str, str],
    ) -> None:
        self._headers = {**_HEADERS, **headers}
        self._part, self._checksum, self._progress = part, checksum, progress
        self._max_bytes, self._responses = max_bytes, ExitStack()
        self.done = 0
        # Not `total`: pooch sets an attribute of that name.
        self.size: int | None = None

    def __call__(self, url: str, output: str, _: object) -> None:
        mode = "ab" if self._checksum else "wb"
        with self._part.open(mode) as self._file, ExitStack() as self._responses:
            self.done = self._file.tell()
            pooch.HTTPDownloader(
                progressbar=self,
                chunk_size=1 << 16,
                timeout=(15.0, 60.0),
                verify=_CAS.cafile or _CAS.capath or True,
                headers=self._headers | ({"Range": f"bytes={self.done}-"} if self.done else {}),
                hooks={"response": self._check},
                # Else ~/.netrc, which may have a password of git for the same server, precedes.
                auth=_as_given if "authorization" in map(str.lower, self._headers) else None,
            )(url, self._file, None)
            os.fsync(self._file.fileno())
        try:
            _verify(self._part, self._checksum, "the file is deleted")
        except ExportError:
            self._part.unlink()
            raise
        self._part.replace(output)

    def _check(self, response: requests.Response, **_: object) -> None:
        """Check each response before its redirect is followed or its body read."""
        self._responses.callback(response.close)  # pooch does not close them
        status, length = response.status_code, response.headers.get("Content-Length")
        if response.is_redirect:
            target = urljoin(response.url, response.headers["Location"])
            if check_url(target).scheme != "https" and response.url.startswith("https:"):
                raise ExportError(f"{shown(target)}: redirected from https to http")
            return
        if status in (requests.codes.ok, requests.codes.requested_range_not_satisfiable):
            self._file.truncate(0)  # the response is not the requested range
            self.done = self._file.seek(0)
        if status != requests.codes.ok and not (status == requests.codes.partial and self.done):
            final = status < 500 and status not in (416, requests.codes.too_many_requests)
            text = f"the server responded with {status} {response.reason}"
            raise ExportError(f"{shown(response.url)}: {text}") if final else ValueError(text)
        if length is None and self._checksum is None:
            raise ExportError(
                f"{shown(response.url)}: the response has no size; this requires a checksum"
            )
        self.size = None if length is None else self.done + int(length)
        self._report(self.size or 0)

    def update(self, _: int) -> None:
        """Report progress; pooch knows neither the resumed size nor the length of a block."""
        self.done = self._file.tell()
        self._report(self.done)

    def _report(self, size: int) -> None:
        if size > self._max_bytes:
            self._part.unlink()
            raise ExportError(
                f"{self._part.stem}: {size} bytes, more than the limit of {self._max_bytes}"
            )
        self._progress(self.done, self.size)

    def reset(self) -> None:
        """Do nothing; part of the interface of a progress bar of pooch."""

    close = reset


def _as_given(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Authenticate a request with its own headers."""
    return request


def _verify(path: Path, checksum: str | None, consequence: str) -> None:
    found = checksum and checksum_of(path, checksum.partition(":")[0])
    if found != checksum:
        raise ExportError(f"{path}: expected {checksum}, found {found}; {consequence}")


def _reason(error: BaseException) -> str:
    """Return the text of the innermost cause: outer exceptions contain the URL with its secrets."""
    while cause := error.__cause__ or error.__context__:
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
