"""Allocator settings, the same for every process of a benchmark."""

from __future__ import annotations

import os
import sys

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
"""Freed blocks of megabytes stay in the process, instead of being mapped and cleared each time."""


def restart_with_allocator(module: str) -> None:
    """Run this program again with the settings, unless it has them: they count at the start."""
    if all(os.environ.get(name) == value for name, value in ALLOCATOR.items()):
        return
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})
