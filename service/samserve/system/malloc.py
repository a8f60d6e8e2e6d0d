"""Settings of the allocator of glibc for processes that work on large buffers."""

from __future__ import annotations

import ctypes
from contextlib import suppress

# Of mallopt(3).
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_THRESHOLD_BYTES = 1 << 20
_ARENAS = 2


def return_large_buffers() -> None:
    """Return buffers of more than 1 MiB to the system as soon as they are freed.

    Otherwise glibc keeps those of up to 32 MiB, in as many pools as there are threads: for images
    of 12 MiB, hundreds of MiB.  Other C libraries are left as they are.
    """
    with suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD_BYTES)
        libc.mallopt(_M_ARENA_MAX, _ARENAS)
