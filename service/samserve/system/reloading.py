"""Files that may be replaced while the server runs: read again, and kept if they got worse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from samserve.errors import Misconfigured
from samserve.system.background import periodic
from samserve.system.file_permissions import warn_if_world_writable

T = TypeVar("T")

_Signature = tuple[tuple[int, ...] | None, ...]
# Reads of files that are exchanged while they are read.
_ATTEMPTS = 5


class ReloadableFile(Generic[T]):
    """What *parse* makes of the contents of some files, as they were when last valid.

    *parse* takes the bytes of each file, at most *most_bytes* each, and raises `Misconfigured`;
    its text may hold no value, since it is logged.  Files are followed through symbolic links, so
    that Kubernetes' way of exchanging a mounted secret is noticed.  `refresh` and `reload` may be
    called in any thread; ``value`` is replaced in one step.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], parse: Callable[..., T], most_bytes: int = 1 << 20
    ) -> None:
        self.name = name
        self.paths = tuple(paths)
        self._parse = parse
        self._most_bytes = most_bytes
        self._log = structlog.get_logger("samserve.files")
        self._lock = threading.Lock()
        self._seen: _Signature | None = None
        # The state of the files that could not be used.
        self._refused: _Signature | None = None
        self.value = self._read()

    @property
    def healthy(self) -> bool:
        """Whether ``value`` is what the files say now."""
        return self._seen is not None

    def refresh(self) -> None:
        """Read the files if they have changed; what cannot be used is logged, and not taken."""
        try:
            if self.reload():
                self._log.info("read again", file=self.name)
        except Misconfigured as error:
            self._log.error("kept the old content", file=self.name, reason=error.message)

    def reload(self) -> bool:
        """Read the files if they have changed, and return whether there is a new ``value``.

        Raises `Misconfigured` if they cannot be used, once for each change.  They are tried again
        at the next call, since reading may have failed for another reason than their content.
        """
        with self._lock:
            now = self._signature()
            if now == self._seen:
                return False
            self._seen = None
            try:
                self.value = self._read()
            except Misconfigured:
                known, self._refused = self._refused, now
                if known == now:
                    return False
                raise
            self._refused = None
            return True

    def _read(self) -> T:
        for _ in range(_ATTEMPTS):
            before = self._signature()
            contents = [self._content(path) for path in self.paths]
            # A key of today with the certificate of yesterday would be no pair.
            if self._signature() == before:
                value = self._parsed(contents)
                self._seen = before
                warn_if_world_writable(self.paths)
                return value
        raise Misconfigured(f"{self.name}: changed while it was being read")

    def _parsed(self, contents: Sequence[bytes]) -> T:
        try:
            return self._parse(*contents)
        except Misconfigured:
            raise
        except Exception as error:
            # A bug of a parser must not keep the other files from being looked at.
            raise Misconfigured(f"{self.name}: {type(error).__name__} while reading") from None

    def _content(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(self._most_bytes + 1)
        except OSError as error:
            raise Misconfigured(f"{path}: {error.strerror or 'cannot be read'}") from None
        if len(content) > self._most_bytes:
            raise Misconfigured(f"{path}: is larger than {self._most_bytes} bytes")
        return content

    def _signature(self) -> _Signature:
        return tuple(_state(path) for path in self.paths)


def refreshing(
    files: Sequence[ReloadableFile[Any]], interval_s: float
) -> AbstractAsyncContextManager[None]:
    """Look at the files every *interval_s* seconds while the block runs."""

    async def refresh() -> None:
        for each in files:
            await asyncio.to_thread(each.refresh)

    return periodic(refresh, interval_s, "looking at files failed", "samserve.files")


def _state(path: Path) -> tuple[int, ...] | None:
    """Identity, size and times of a file, which tell that it was replaced; None without it."""
    try:
        status = path.stat()
    except OSError:
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)
