"""One block of memory cut into equal slots."""

from __future__ import annotations

import mmap

import numpy as np

from samserve.types import Array, TensorSpec

# Tensors start on cache lines, which vectorised kernels like, and slots on pages, so that the
# memory of a free slot can be given back to the system.
_TENSOR_ALIGNMENT = 64


class Arena:
    """Slots of one size inside one anonymous mapping; pages are taken when first written.

    Not thread safe: allocation happens on the event loop, only the bytes of a slot are touched by
    other threads.
    """

    def __init__(self, slot_bytes: int, slots: int) -> None:
        self.slot_bytes = round_up_to_page(slot_bytes)
        # Private: the pages of a shared mapping could not be given back one by one.
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, self.slot_bytes * slots, flags=flags)
        # Free slots; the last one is taken first, so that warm pages are used again.
        self._free = list(reversed(range(slots)))

    def allocate(self) -> int | None:
        """Take a slot, or None if there is none."""
        return self._free.pop() if self._free else None

    def free(self, index: int) -> None:
        """Give a slot back; its content may be overwritten from now on."""
        self._free.append(index)

    def release_pages(self, index: int) -> None:
        """Return the memory of a free slot to the system; its content becomes zeros."""
        self._memory.madvise(mmap.MADV_DONTNEED, self.offset(index), self.slot_bytes)

    def offset(self, index: int) -> int:
        """First byte of a slot within the arena."""
        return index * self.slot_bytes

    def view(self, index: int, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        """View a slot as named tensors, laid out one after the other."""
        tensors: dict[str, Array] = {}
        offset = self.offset(index)
        for spec in specs:
            count = spec.nbytes // spec.dtype.itemsize
            flat = np.frombuffer(self._memory, dtype=spec.dtype, count=count, offset=offset)
            tensors[spec.name] = flat.reshape(spec.shape)
            offset += _round_up(spec.nbytes, _TENSOR_ALIGNMENT)
        return tensors


def slot_bytes(specs: tuple[TensorSpec, ...]) -> int:
    """Bytes that a slot needs to hold tensors of these specs."""
    return sum(_round_up(spec.nbytes, _TENSOR_ALIGNMENT) for spec in specs)


def round_up_to_page(nbytes: int) -> int:
    """Size of the smallest whole number of pages that holds *nbytes*."""
    return _round_up(nbytes, mmap.PAGESIZE)


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
