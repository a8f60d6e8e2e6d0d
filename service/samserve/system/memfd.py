"""In-memory files, for libraries that only accept paths."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_path(content: bytes) -> Iterator[str]:
    """Yield a path from which *content* can be read; the file is in memory, and only in the block.

    The original file may have been replaced since the content was checked.
    """
    with open(os.memfd_create("samserve"), "w+b", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{file.fileno()}"
