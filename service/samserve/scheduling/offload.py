"""The one rule for what is small enough to run on the event loop.

To go to a thread and back costs about 0.1 ms of CPU, so what takes less than that several times
over is done at once, and everything larger in a thread (`thread_pools.Workers.run_unless`).
"""

from __future__ import annotations

MAX_ITEMS = 4
"""Prompts to read or masks to write, each some 0.05 ms of Python."""
MAX_NUMBERS = 64
"""Points to read or runs to write, of all items together, each some 0.005 ms of Python."""
MAX_BYTES = 64 << 10
"""Bytes of messages that protobuf parses; bytes that are only copied do not count."""


def is_quick(*, items: int = 0, numbers: int = 0, nbytes: int = 0) -> bool:
    """Return whether work on so many items, numbers and bytes takes a fraction of a millisecond.

    Work on pixels (resizing, upsampling, run lengths, decoding a mask) is never quick: do not ask.
    """
    return items <= MAX_ITEMS and numbers <= MAX_NUMBERS and nbytes <= MAX_BYTES
