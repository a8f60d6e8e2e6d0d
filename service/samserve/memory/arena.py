"""One block of memory divided into equal slots."""

from __future__ import annotations

from samserve.memory.anonymous import Memory
from samserve.types import Array, TensorSpec

# Tensors start on cache lines, which vectorised kernels prefer, and slots on pages, so that the
# memory of a free slot can be released to the system.
_TENSOR_ALIGNMENT = 64


class Arena:
    """Slots of one size, a whole number of pages, inside one block of memory.

    Not thread safe: slots are allocated on the event loop; other threads access only their bytes.
    """

    def __init__(self, memory: Memory, slot_bytes: int, *, committed: bool) -> None:
        """Divide *memory*; if it is not *committed*, each slot is committed when first used."""
        self.slot_bytes = slot_bytes
        self._memory = memory
        self._slots = memory.nbytes // slot_bytes
        # The first slot that was never allocated; all following ones are free, too.  They are not
        # stored one by one: there may be a million.
        self._fresh = 0
        self._fresh_committed = committed
        # Other free slots; the last one is allocated first, so that warm pages are reused.
        self._free: list[int] = []
        # Those of them whose pages were released.
        self._uncommitted: set[int] = set()

    def allocate(self) -> int | None:
        """Allocate a slot; None if all are in use.  Raises `MemoryExhausted`, allocating none."""
        if self._free:
            index = self._free[-1]
            if index in self._uncommitted:
                self._commit(index)
                self._uncommitted.remove(index)
            return self._free.pop()
        if self._fresh == self._slots:
            return None
        if not self._fresh_committed:
            self._commit(self._fresh)
        self._fresh += 1
        return self._fresh - 1

    def free(self, index: int) -> None:
        """Free a slot; its content may be overwritten from now on."""
        self._free.append(index)

    def release_pages(self, index: int) -> None:
        """Release the memory of a free slot to the system; its content becomes zeros."""
        self._memory.release(index * self.slot_bytes, self.slot_bytes)
        self._uncommitted.add(index)

    def release_free_pages(self) -> None:
        """Release the memory of all free slots to the system."""
        for index in set(self._free) - self._uncommitted:
            self.release_pages(index)
        fresh = self._slots - self._fresh
        if self._fresh_committed and fresh:
            self._memory.release(self._fresh * self.slot_bytes, fresh * self.slot_bytes)
        self._fresh_committed = False

    def view(self, index: int, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        """Return a slot as named tensors, laid out one after the other."""
        tensors: dict[str, Array] = {}
        offset = index * self.slot_bytes
        for spec in specs:
            flat = self._memory.array[offset : offset + spec.nbytes].view(spec.dtype)
            tensors[spec.name] = flat.reshape(spec.shape)
            offset += _aligned(spec.nbytes)
        return tensors

    def _commit(self, index: int) -> None:
        self._memory.commit(index * self.slot_bytes, self.slot_bytes)


def slot_bytes(specs: tuple[TensorSpec, ...]) -> int:
    """Return the bytes that a slot needs for tensors of these specs."""
    return sum(_aligned(spec.nbytes) for spec in specs)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _TENSOR_ALIGNMENT) * _TENSOR_ALIGNMENT
