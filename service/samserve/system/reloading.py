"""Files that are reloaded while the server runs; invalid content does not replace valid content."""

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
# Reads of files that change while they are read.
_ATTEMPTS = 5


class ReloadableFile(Generic[T]):
    """The parsed content of one or more files; ``value`` is the last valid one.

    *parse* gets the bytes of each file, at most *max_bytes* each, and raises `Misconfigured`, whose
    text must not contain values, since it is logged.  Symbolic links are followed, so that the
    replacement of a mounted secret by Kubernetes is noticed.  `refresh` and `reload` may be called
    in any thread; ``value`` is replaced atomically.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], parse: Callable[..., T], max_bytes: int = 1 << 20
    ) -> None:
        self.name = name
        self.paths = tuple(paths)
        self._parse = parse
        self._max_bytes = max_bytes
        self._log = structlog.get_logger("samserve.files")
        self._lock = threading.Lock()
        self._seen: _Signature | None = None
        # The state of the files whose last reload failed.
        self._rejected: _Signature | None = None
        self.value = self._read()

    @property
    def healthy(self) -> bool:
        """Whether ``value`` is the current content of the files."""
        return self._seen is not None

    def refresh(self) -> None:
        """Reload the files if they have changed; log a failure and keep the previous content."""
        try:
            if self.reload():
                self._log.info("config reloaded", file=self.name)
        except Misconfigured as error:
            self._log.error("config reload failed", file=self.name, reason=error.message)

    def reload(self) -> bool:
        """Reload the files if they have changed; return whether ``value`` is new.

        Raises `Misconfigured` if they are invalid, once for each change.  The next call tries
        again, since reading may have failed for another reason than the content.
        """
        with self._lock:
            now = self._signature()
            if now == self._seen:
                return False
            self._seen = None
            try:
                self.value = self._read()
            except Misconfigured:
                reported, self._rejected = self._rejected, now
                if reported == now:
                    return False
                raise
            self._rejected = None
            return True

    def _read(self) -> T:
        for _ in range(_ATTEMPTS):
            before = self._signature()
            contents = [self._content(path) for path in self.paths]
            # Files must be of one version: a new key would not match an old certificate.
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
            # A bug in one parser must not keep the other files from being reloaded.
            raise Misconfigured(f"{self.name}: {type(error).__name__} while reading") from None

    def _content(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(self._max_bytes + 1)
        except OSError as error:
            raise Misconfigured(f"{path}: {error.strerror or 'cannot be read'}") from None
        if len(content) > self._max_bytes:
            raise Misconfigured(f"{path}: is larger than {self._max_bytes} bytes")
        return content

    def _signature(self) -> _Signature:
        return tuple(_state(path) for path in self.paths)


def refreshing(
    files: Sequence[ReloadableFile[Any]], interval_s: float
) -> AbstractAsyncContextManager[None]:
    """Reload changed files every *interval_s* seconds while the block runs."""

    async def refresh() -> None:
        for each in files:
            await asyncio.to_thread(each.refresh)

    return periodic(refresh, interval_s, "checking files failed", "samserve.files")


def _state(path: Path) -> tuple[int, ...] | None:
    """Return identity, size and times of a file, which show a change; None if it is missing."""
    try:
        status = path.stat()
    except OSError:
        return None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)
