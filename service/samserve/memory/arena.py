"""One block of memory cut into equal slots."""

from __future__ import annotations

from samserve.memory.anonymous import Memory
from samserve.types import Array, TensorSpec

# Tensors start on cache lines, which vectorised kernels like, and slots on pages, so that the
# memory of a free slot can be given back to the system.
_TENSOR_ALIGNMENT = 64


class Arena:
    """Slots of one size, a whole number of pages, inside one block of memory.

    Not thread safe: allocation happens on the event loop, only the bytes of a slot are touched by
    other threads.
    """

    def __init__(self, memory: Memory, slot_bytes: int, *, committed: bool) -> None:
        """Cut *memory*; what is not *committed* yet is so slot by slot, when they are used."""
        self.slot_bytes = slot_bytes
        self._memory = memory
        self._slots = memory.nbytes // slot_bytes
        # Slots from this one on were never taken, and have memory behind them or not.  They are
        # not listed one by one: there may be a million.
        self._fresh = 0
        self._fresh_committed = committed
        # Other free slots; the last one is taken first, so that warm pages are used again.
        self._free: list[int] = []
        # Those of them without memory behind them.
        self._hollow: set[int] = set()

    def allocate(self) -> int | None:
        """Take a slot, or None if there is none.  Raises `MemoryExhausted`, and takes none."""
        if self._free:
            index = self._free[-1]
            if index in self._hollow:
                self._commit(index)
                self._hollow.remove(index)
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
        """Return the memory of a free slot to the system; its content becomes zeros."""
        self._memory.release(index * self.slot_bytes, self.slot_bytes)
        self._hollow.add(index)

    def release_free_pages(self) -> None:
        """Return the memory of all free slots to the system."""
        for index in set(self._free) - self._hollow:
            self.release_pages(index)
        fresh = self._slots - self._fresh
        if self._fresh_committed and fresh:
            self._memory.release(self._fresh * self.slot_bytes, fresh * self.slot_bytes)
        self._fresh_committed = False

    def view(self, index: int, specs: tuple[TensorSpec, ...]) -> dict[str, Array]:
        """View a slot as named tensors, laid out one after the other."""
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
    """Bytes that a slot needs to hold tensors of these specs."""
    return sum(_aligned(spec.nbytes) for spec in specs)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // _TENSOR_ALIGNMENT) * _TENSOR_ALIGNMENT
