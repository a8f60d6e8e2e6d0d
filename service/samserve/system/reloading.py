"""Files that may be replaced while the server runs: read again, and kept if they got worse."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog

from samserve.errors import Misconfigured
from samserve.system.file_permissions import warn_if_world_writable

T = TypeVar("T")

_Signature = tuple[tuple[int, ...], ...]


class Watched(Generic[T]):
    """What *parse* makes of the contents of some files, as they were when last in order.

    *parse* takes the bytes of each file, at most *most_bytes* each, and raises `Misconfigured`;
    its text may hold no value, since it is logged.  Files are followed through symbolic links, so
    that Kubernetes' way of exchanging a mounted secret is noticed.  `refresh` may be called in any
    thread; ``value`` is replaced in one step.
    """

    def __init__(
        self, name: str, paths: Sequence[Path], parse: Callable[..., T], most_bytes: int = 1 << 20
    ) -> None:
        self.name = name
        self._paths = tuple(paths)
        self._parse = parse
        self._most_bytes = most_bytes
        self._log = structlog.get_logger("samserve.files")
        self._lock = threading.Lock()
        self._seen: _Signature | None = None
        self.value = self._read()

    @property
    def healthy(self) -> bool:
        """Whether ``value`` is what the files say now."""
        return self._seen is not None

    def refresh(self) -> None:
        """Read the files if they have changed; what cannot be used is logged, and not taken."""
        with self._lock:
            with suppress(Misconfigured):
                if self._signature() == self._seen:
                    return
            had, self._seen = self._seen, None
            try:
                self.value = self._read()
            except Misconfigured as error:
                # Said once, not at every look, until it is in order again.
                if had is not None:
                    self._log.error("kept the old content", file=self.name, reason=error.message)
                return
            self._log.info("read again", file=self.name)

    def _read(self) -> T:
        before = self._signature()
        contents = [self._content(path) for path in self._paths]
        try:
            value = self._parse(*contents)
        except Misconfigured:
            raise
        except Exception as error:
            # Whatever a parser has let out: the other files must still be looked at.
            raise Misconfigured(f"{self.name}: {type(error).__name__} while reading") from None
        if self._signature() != before:
            raise Misconfigured(f"{self.name}: changed while it was being read")
        self._seen = before
        warn_if_world_writable(self._paths)
        return value

    def _content(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(self._most_bytes + 1)
        except OSError as error:
            raise _unreadable(path, error) from None
        if len(content) > self._most_bytes:
            raise Misconfigured(f"{path}: is larger than {self._most_bytes} bytes")
        return content

    def _signature(self) -> _Signature:
        return tuple(_look_at(path) for path in self._paths)


@asynccontextmanager
async def refreshing(watched: Sequence[Watched[Any]], interval_s: float) -> AsyncIterator[None]:
    """Look at the files every *interval_s* while the block runs."""
    looking = asyncio.create_task(_refresh(watched, interval_s))
    try:
        yield
    finally:
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking


async def _refresh(watched: Sequence[Watched[Any]], interval_s: float) -> None:
    while watched:
        await asyncio.sleep(interval_s)
        for files in watched:
            await asyncio.to_thread(files.refresh)


def _look_at(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from None
    times = (status.st_mtime_ns, status.st_ctime_ns)
    return (status.st_dev, status.st_ino, status.st_size, *times)


def _unreadable(path: Path, error: OSError) -> Misconfigured:
    return Misconfigured(f"{path}: {error.strerror or 'cannot be read'}")
