"""Segments of POSIX shared memory, for an inference server on the same host.

A segment is a file under ``/dev/shm``.  Its owner holds an exclusive lock on it, which the kernel
releases when the owner ends, however it ends; a process that can take the lock knows that the
segment is orphaned.  Process ids would not show it, since containers that share
``/dev/shm`` do not share process ids.
"""

from __future__ import annotations

import errno
import fcntl
import math
import mmap
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from samserve.errors import MemoryExhausted
from samserve.memory.anonymous import round_up_to_page
from samserve.types import Array, FloatArray, UInt8Array

PREFIX = "samserve-"
"""Prefix of the names of all segments of all gateways."""

_KEY_BYTES = 8
_NAMES = PREFIX + 2 * _KEY_BYTES * "[0-9a-f]"

# The inference server may run as another user of the same group.
_MODE = 0o660
# Linux 5.14; populates the page tables, so that first use does not fault page by page.
_MADV_POPULATE_WRITE = 23


@dataclass(frozen=True, slots=True)
class Location:
    """Location of an array: *offset* bytes into the segment *key*."""

    key: str
    offset: int

    @property
    def region(self) -> str:
        """The name under which an inference server registers the segment."""
        return region_name(self.key)


class SharedSegment:
    """A `Memory` that other processes can map by its ``key``."""

    def __init__(self, path: Path, descriptor: int, nbytes: int) -> None:
        self.nbytes = nbytes
        self._path = path
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, nbytes)
        self.array: UInt8Array = np.frombuffer(self._map, dtype=np.uint8)
        self.address = self.array.ctypes.data

    @property
    def key(self) -> str:
        """The name that ``shm_open`` expects."""
        return f"/{self._path.name}"

    def commit(self, offset: int, nbytes: int) -> None:
        """See `Memory.commit`; without this, a full ``/dev/shm`` would kill the writer."""
        try:
            os.posix_fallocate(self._descriptor, offset, nbytes)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.ENOMEM):
                raise
            raise _exhausted(self._path.parent, nbytes) from error
        with suppress(OSError):  # an older kernel: pages are mapped when they are first accessed
            self._map.madvise(_MADV_POPULATE_WRITE, offset, nbytes)

    def release(self, offset: int, nbytes: int) -> None:
        """See `Memory.release`; the pages are released for other processes as well."""
        self._map.madvise(mmap.MADV_REMOVE, offset, nbytes)

    def view(self, offset: int, shape: tuple[int, ...]) -> FloatArray:
        """Return a float32 view of *shape*; its ``base`` lives as long as any view of it."""
        count = math.prod(shape)
        flat: FloatArray = np.frombuffer(self._map, dtype=np.float32, count=count, offset=offset)
        return flat.reshape(shape)

    def close(self) -> None:
        """Remove the name and release the lock; the bytes stay while they are mapped."""
        self._path.unlink(missing_ok=True)
        # A thread that still commits must not use a new file with the same descriptor.
        descriptor, self._descriptor = self._descriptor, -1
        os.close(descriptor)


class SharedMemory:
    """Creates the segments of one gateway; names are never reused.

    *directory* is that of ``shm_open``; *group* is the numeric group that may map the segments in
    addition to the user, None for the group of the process (or of a set-group-id directory).
    """

    def __init__(self, directory: Path = Path("/dev/shm"), group: int | None = None) -> None:  # noqa: S108
        self._directory = directory
        self._group = group
        self._segments: dict[str, SharedSegment] = {}

    def create(self, nbytes: int, *, commit: bool = False) -> SharedSegment:
        """Create a segment of at least *nbytes* bytes; with *commit*, all of it is committed.

        Raises `MemoryExhausted` if the memory is exhausted, `OSError` if the directory cannot be
        used; then the segment is removed.
        """
        size = round_up_to_page(nbytes)
        path, descriptor = self._create_locked()
        try:
            if self._group is not None:
                os.fchown(descriptor, -1, self._group)
            # The umask masks the mode of open().
            os.fchmod(descriptor, _MODE)
            os.ftruncate(descriptor, size)
            segment = SharedSegment(path, descriptor, size)
            if commit:
                segment.commit(0, size)
        except BaseException:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        self._segments[segment.key] = segment
        return segment

    def close_segment(self, segment: SharedSegment) -> None:
        """Remove one segment; its key is never reused."""
        if self._segments.pop(segment.key, None) is not None:
            segment.close()

    def locate(self, array: Array) -> Location | None:
        """Return the location of a contiguous array, None if it is in no segment."""
        if not array.flags.c_contiguous:
            return None
        address = array.ctypes.data
        for segment in self._segments.values():
            offset = address - segment.address
            if offset >= 0 and offset + array.nbytes <= segment.nbytes:
                return Location(segment.key, offset)
        return None

    def remove_orphans(self) -> list[str]:
        """Remove the segments of gateways that have ended; return their keys."""
        removed = []
        for path in sorted(self._directory.glob(_NAMES)):
            if _remove_if_orphan(path):
                removed.append(f"/{path.name}")
        return removed

    def exists(self, key: str) -> bool:
        """Return whether the segment *key* still has a name."""
        return (self._directory / region_name(key)).exists()

    def close(self) -> None:
        """Remove all segments."""
        for segment in list(self._segments.values()):
            self.close_segment(segment)

    def _create_locked(self) -> tuple[Path, int]:
        while True:
            path = self._directory / f"{PREFIX}{secrets.token_hex(_KEY_BYTES)}"
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, _MODE)
            if _lock(descriptor) and os.fstat(descriptor).st_nlink:
                return path, descriptor
            # Another gateway removed the file as an orphan before it was locked.
            os.close(descriptor)


def region_name(key: str) -> str:
    """Return the name under which an inference server registers the segment *key*."""
    return key.lstrip("/")


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_orphan(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False  # removed already, or owned by another user
    try:
        if not _lock(descriptor):
            return False
        path.unlink(missing_ok=True)
        return True
    except PermissionError:
        return False
    finally:
        os.close(descriptor)


def _exhausted(directory: Path, nbytes: int) -> MemoryExhausted:
    status = os.statvfs(directory)
    available = status.f_bavail * status.f_frsize
    return MemoryExhausted(
        f"{directory} has {available} bytes free, {nbytes} are needed",
        metadata={"available": str(available), "needed": str(nbytes)},
    )
