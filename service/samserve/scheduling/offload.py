"""The rule for which work is small enough to run on the event loop.

Switching to a thread and back costs about 0.1 ms of CPU.  Work that takes at most a few times as
long runs on the event loop, anything larger in a thread (`thread_pools.Workers.run_unless`, or
`copying` for work that belongs to no call).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

MAX_ITEMS = 4
"""Prompts to parse or masks to serialize, each about 0.05 ms of Python."""
MAX_NUMBERS = 64
"""Points to parse or runs to serialize, over all items, each about 0.005 ms of Python."""
MAX_BYTES = 64 << 10
"""Bytes of messages that protobuf parses; bytes that are only copied are not counted."""
MAX_COPIED_BYTES = 1 << 20
"""Bytes to copy or to hash.  In new memory, whose pages the system clears first, this takes about
half a millisecond."""


MAX_HASHED_BYTES = 256 << 10
"""Bytes to hash, in memory that is in use already."""
MAX_MASK_PIXELS = 640 * 480
"""Pixels of masks to upsample and encode, about 0.003 ms per 1,000 pixels."""
MAX_SHORT_MASK_PIXELS = 4 << 20
"""Pixels of masks whose work is many short steps, each of which needs Python's lock."""


class Work(Enum):
    """Where work runs: on the event loop, in the one thread for short work, or in any thread."""

    QUICK = "quick"
    SHORT = "short"
    LONG = "long"


def mask_work(pixels: int) -> Work:
    """Return where to upsample and encode masks that have *pixels* pixels together.

    Masks of a small image are steps of some 0.01 ms in Python.  In several threads they take a
    third more CPU, because the threads and the event loop wake each other for Python's lock.
    """
    if pixels <= MAX_MASK_PIXELS:
        return Work.QUICK
    return Work.SHORT if pixels <= MAX_SHORT_MASK_PIXELS else Work.LONG


def is_quick(*, items: int = 0, numbers: int = 0, nbytes: int = 0) -> bool:
    """Return whether work on these amounts takes a fraction of a millisecond.

    This is not for work on pixels: `mask_work` is, and resizing or decoding is never quick.
    """
    return items <= MAX_ITEMS and numbers <= MAX_NUMBERS and nbytes <= MAX_BYTES


async def copying(nbytes: int, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call *function*, which copies or hashes *nbytes*; if they are many, in a thread.

    Cancelling this does not stop the thread: if *function* writes, run this as a task, shield it,
    and keep the memory until the task is done.
    """
    if nbytes <= MAX_COPIED_BYTES:
        return function(*args, **kwargs)
    return await asyncio.to_thread(function, *args, **kwargs)
