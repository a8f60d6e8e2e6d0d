"""The port to a block of memory that is cut into slots."""

from __future__ import annotations

import mmap
from typing import Protocol

import numpy as np

from samserve.types import UInt8Array


class Memory(Protocol):
    """A writable block, mapped as long as it or a view of it is referenced."""

    @property
    def nbytes(self) -> int:
        """Size; a whole number of pages."""

    @property
    def array(self) -> UInt8Array:
        """The whole block as uint8 ``[nbytes]``."""

    def commit(self, offset: int, nbytes: int) -> None:
        """Take real memory for whole pages, so that writing into them cannot fail.

        Raises `samserve.errors.MemoryExhausted`.
        """

    def release(self, offset: int, nbytes: int) -> None:
        """Return whole pages to the system; their content becomes zeros."""


class Allocate(Protocol):
    """Maps a block of at least *nbytes* bytes, all of it committed if that is asked for.

    Raises `samserve.errors.MemoryExhausted`.
    """

    def __call__(self, nbytes: int, *, commit: bool) -> Memory: ...  # noqa: D102


class AnonymousMemory:
    """Memory of this process alone; the system takes pages when they are first written.

    *commit* changes nothing: the system overcommits private memory.
    """

    def __init__(self, nbytes: int, *, commit: bool = False) -> None:
        self.nbytes = round_up_to_page(nbytes)
        # Private: the pages of a shared anonymous mapping could not be given back one by one.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._map = mmap.mmap(-1, self.nbytes, flags=flags)
        self.array: UInt8Array = np.frombuffer(self._map, dtype=np.uint8)

    def commit(self, offset: int, nbytes: int) -> None:
        """See `Memory.commit`."""

    def release(self, offset: int, nbytes: int) -> None:
        """See `Memory.release`."""
        self._map.madvise(mmap.MADV_DONTNEED, offset, nbytes)


def round_up_to_page(nbytes: int) -> int:
    """Size of the smallest whole number of pages that holds *nbytes*."""
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
