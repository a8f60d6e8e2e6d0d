"""Contents as paths, for libraries that only read files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def as_path(content: bytes) -> Iterator[str]:
    """Yield a path to read *content* from, which is in memory and gone after the block.

    The file that it came from may have been replaced since the content was checked.
    """
    with open(os.memfd_create("samserve"), "w+b", buffering=0) as file:
        file.write(content)
        yield f"/proc/self/fd/{file.fileno()}"
