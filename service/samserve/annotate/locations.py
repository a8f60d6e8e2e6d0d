"""Folders and files by their paths or URLs of `fsspec`."""

from __future__ import annotations

import functools
import os
import zipfile
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from samserve.errors import InvalidRequest

ARCHIVE_ERRORS = (ValueError, RuntimeError, LookupError, zipfile.BadZipFile)
"""Errors of archives in place of ``OSError``."""
_FILE = "file://"


def locate(url: str, field: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system of a path or URL, and the path in it.

    A path of this machine that exists is never taken for a URL.  Raises
    `samserve.errors.InvalidRequest` for a URL that cannot be used; *field* names it.
    """
    if not is_url(url):
        return LocalFileSystem(), str(Path(url).absolute())
    if url.startswith(_FILE) and "::" not in url:
        return LocalFileSystem(), str(Path(url.removeprefix(_FILE)).absolute())
    try:
        # Archives are not kept by fsspec, and have to stay open while their files are.
        return _opened(url) if "::" in url else _open(url)
    except (*ARCHIVE_ERRORS, ImportError, OSError) as error:
        raise InvalidRequest(field, f"{without_secrets(url)}: {reason_of(error)}") from error


def open_zip(path: Path) -> fsspec.AbstractFileSystem:
    """Return the file system of the content of a ``.zip`` file.

    Raises ``OSError`` and `ARCHIVE_ERRORS`.
    """
    return _opened_zip(str(path.absolute()), path.stat().st_mtime_ns)


def _open(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    file_system, path = fsspec.core.url_to_fs(url)
    return file_system, str(path)


_opened = functools.lru_cache(maxsize=4)(_open)


@functools.lru_cache(maxsize=4)
def _opened_zip(path: str, changed_ns: int) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem("zip", fo=path)


def is_url(text: str) -> bool:
    """Return whether a text is a URL of `fsspec` rather than a path of this machine."""
    return ("://" in text or "::" in text) and not os.path.lexists(text)


def is_local(file_system: fsspec.AbstractFileSystem) -> bool:
    """Return whether files are those of this machine."""
    return isinstance(file_system, LocalFileSystem)


def without_secrets(url: str) -> str:
    """Return a URL without the name and password, and without the query, which may be signed."""
    if not is_url(url) or "::" in url:
        return url
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def reason_of(error: BaseException) -> str:
    """Return one line with the reason of an error of a file system."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    text = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return " ".join(text.split())[:300]
