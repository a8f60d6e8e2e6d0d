"""Downloading one large file: resumed where it was cut, verified, and visible only when whole."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from samserve.export.errors import ExportError
from samserve.export.part import Part
from samserve.export.transfer import Interrupted, Request, file_name, resumable, shown, transfer

MAX_BYTES = 8 << 30
ATTEMPTS = 5
FIRST_WAIT_S = 1.0

SHA256 = "sha256"
GIT_BLOB = "git-blob-sha1"

_DIGITS = {SHA256: 64, GIT_BLOB: 40}
_BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a file's bytes must add up to.

    ``kind`` is ``"sha256"`` or ``"git-blob-sha1"``, the name that git gives to a file's content:
    the SHA-1 of ``b"blob <size>\\0"`` and the content.  ``value`` is hexadecimal, in lower case.
    Raises `ExportError` for any other.
    """

    kind: str
    value: str

    def __post_init__(self) -> None:
        digits = _DIGITS.get(self.kind, 0)
        if not (digits and re.fullmatch(f"[0-9a-f]{{{digits}}}", self.value)):
            raise ExportError(
                f"checksum {str(self)!r}: expected the 64 hexadecimal digits of a SHA-256, "
                f"or {GIT_BLOB!r}, a colon and 40"
            )

    def __str__(self) -> str:
        return f"{self.kind}:{self.value}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``kind:digits``, or the digits of a SHA-256 alone; raises `ExportError`."""
        kind, colon, value = text.rpartition(":")
        return cls(kind if colon else SHA256, value.lower())


@dataclass(frozen=True, slots=True)
class Downloaded:
    """A whole file: where it lies, its SHA-256 in lower case, and its size in bytes."""

    path: Path
    sha256: str
    size: int


def download(
    url: str,
    folder: Path,
    *,
    checksum: Checksum | None,
    progress: Callable[[int, int | None], None],
    max_bytes: int = MAX_BYTES,
    sleep: Callable[[float], None] = time.sleep,
) -> Downloaded:
    """Download *url* into *folder*, which is made, under the last part of the URL's path.

    Only https is spoken, and plain http with this machine; proxies are not supported, nor are those
    of the environment.  *progress* is called with the bytes that have arrived and those of the
    whole, if known; the first may fall, when a file has to be begun anew.

    A file that is there already is taken without asking the network: if *checksum* fits or, without
    one, as it is.  Until a file is whole and verified it is called ``<name>.part``.  Its bytes stay
    unless they turn out wrong, and this or a later call resumes them if the server tells a size and
    a version of the file (an ETag or else Last-Modified, and a strong one); without a version only
    if *checksum* will judge the result.  Otherwise the file is begun anew.

    Broken connections, 429 and 5xx are tried `ATTEMPTS` times, counted anew whenever one brings
    more; between them ``sleep(seconds)`` is called.  While another process downloads the same file,
    this one waits.  Raises `ExportError`, of one line, for everything else that goes wrong.
    """
    target = folder / file_name(url)
    try:
        if found := _existing(target, checksum):
            return found
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_name(f"{target.name}.lock")):
            # Whoever held the lock may have downloaded it.
            if found := _existing(target, checksum):
                return found
            part = Part(target)
            _persist(Request(url, checksum is not None, max_bytes, progress), part, sleep)
            return _publish(part, target, checksum)
    except OSError as error:
        raise ExportError(f"{error.filename or target}: {error.strerror or error}") from error


def _existing(target: Path, checksum: Checksum | None) -> Downloaded | None:
    if not target.exists():
        return None
    found, actual = _read(target, checksum)
    if checksum not in (None, actual):
        raise ExportError(
            f"{target} is another file: expected {checksum}, found {actual}; "
            "delete it to download this one"
        )
    return found


def _persist(request: Request, part: Part, sleep: Callable[[float], None]) -> None:
    """Attempt until all has arrived.

    Only an attempt that got further than any before counts as progress: a server that always begins
    anew and never ends would be asked for ever.
    """
    failures = furthest = 0
    while True:
        try:
            transfer(request, part)
            return
        except Interrupted as error:
            failures = 1 if part.size > furthest else failures + 1
            furthest = max(part.size, furthest)
            if failures == ATTEMPTS:
                raise ExportError(_what_arrived(request, part, error)) from error
        sleep(FIRST_WAIT_S * 2 ** (failures - 1))


def _what_arrived(request: Request, part: Part, error: Interrupted) -> str:
    origin = part.origin(request.url)
    size, total = (part.size, origin.total) if origin else (0, None)
    whole = "an unknown number of" if total is None else total
    again = "resume" if resumable(part, request) else "start over"
    return (
        f"{shown(request.url)}: {size} of {whole} bytes arrived ({error}); "
        f"run the command again to {again}"
    )


def _publish(part: Part, target: Path, checksum: Checksum | None) -> Downloaded:
    found, actual = _read(part.path, checksum)
    if checksum not in (None, actual):
        part.delete()
        raise ExportError(f"{target.name}: expected {checksum}, found {actual}; it is deleted")
    part.publish()
    return Downloaded(target, found.sha256, found.size)


def _read(path: Path, checksum: Checksum | None) -> tuple[Downloaded, Checksum]:
    """Read a file once: what it is, and its checksum of the kind that is asked for."""
    size = path.stat().st_size
    sha256 = hashlib.sha256()
    # Not against an author who wants two files with one name: the publisher is trusted anyway.
    blob = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    asked = checksum.kind if checksum else SHA256
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
            if asked == GIT_BLOB:
                blob.update(block)
    actual = Checksum(asked, (blob if asked == GIT_BLOB else sha256).hexdigest())
    return Downloaded(path, sha256.hexdigest(), size), actual


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file *path*, after waiting for whoever holds it; it is removed at the end."""
    file = _lock(path)
    while not _is_there(path, file):
        file.close()
        file = _lock(path)
    with file:
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _lock(path: Path) -> IO[bytes]:
    file = path.open("wb")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def _is_there(path: Path, file: IO[bytes]) -> bool:
    """Tell whether the file is still the one of that name, and not removed by its last holder."""
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False
