"""The port of memory blocks that are divided into slots, and private anonymous memory."""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np

from samserve.types import UInt8Array


class Memory(Protocol):
    """A writable block that stays mapped as long as it or a view of it is referenced."""

    @property
    def nbytes(self) -> int:
        """Size in bytes; a whole number of pages."""

    @property
    def array(self) -> UInt8Array:
        """The whole block as uint8 ``[nbytes]``."""

    def commit(self, offset: int, nbytes: int) -> None:
        """Allocate physical memory for whole pages, so that writing to them cannot fail.

        Raises `samserve.errors.MemoryExhausted`.
        """

    def release(self, offset: int, nbytes: int) -> None:
        """Release whole pages to the system; their content becomes zeros."""


class Allocate(Protocol):
    """Maps a block of at least *nbytes* bytes; with *commit*, all of it is committed.

    Raises `samserve.errors.MemoryExhausted`.
    """

    def __call__(self, nbytes: int, *, commit: bool) -> Memory: ...  # noqa: D102


class AnonymousMemory:
    """Memory private to this process; the system allocates pages when they are first written.

    *commit* has no effect: the system overcommits private memory.
    """

    def __init__(self, nbytes: int, *, commit: bool = False) -> None:
        self.nbytes = round_up_to_page(nbytes)
        # Private: pages of a shared anonymous mapping could not be released one by one.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, self.nbytes, flags=flags)
        self.array: UInt8Array = np.frombuffer(self._map, dtype=np.uint8)

    def commit(self, offset: int, nbytes: int) -> None:
        """See `Memory.commit`."""

    def release(self, offset: int, nbytes: int) -> None:
        """See `Memory.release`."""
        self._map.madvise(mmap.MADV_DONTNEED, offset, nbytes)


def round_up_to_page(nbytes: int) -> int:
    """Return the size of the smallest whole number of pages that holds *nbytes*."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
