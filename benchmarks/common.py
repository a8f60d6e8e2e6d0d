"""What benchmarks share: options, time and CPU, and the same allocator in all processes."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable

import psutil

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
"""Freed blocks of megabytes stay in the process, instead of being mapped and cleared each time."""


def options(doc: str | None, **defaults: float | str) -> argparse.Namespace:
    """Read the command line: an option for each default, of its type."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


def restart_with_allocator(module: str) -> None:
    """Run this program again with the settings, unless it has them: they count at the start."""
    if all(os.environ.get(name) == value for name, value in ALLOCATOR.items()):
        return
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


async def milliseconds(call: Callable[[], Awaitable[object]]) -> float:
    """Time one call."""
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1e3


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process so far, of all its threads."""
    return sum(psutil.Process(pid).cpu_times()[:2])
