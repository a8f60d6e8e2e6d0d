"""Common parts of the benchmarks: options, wall and CPU time, allocator settings."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Awaitable, Callable

import psutil

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 30), "MALLOC_TRIM_THRESHOLD_": str(8 << 30)}
"""Large freed blocks stay in the process, instead of being mapped and cleared each time."""


def options(doc: str | None, **defaults: float | str) -> argparse.Namespace:
    """Parse the command line, with an option for each default, of the same type."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


def restart_with_allocator(module: str) -> None:
    """Restart this program with `ALLOCATOR` unless it is set; it only takes effect at startup."""
    if all(os.environ.get(name) == value for name, value in ALLOCATOR.items()):
        return
    command = [sys.executable, "-m", module, *sys.argv[1:]]
    os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


async def milliseconds(call: Callable[[], Awaitable[object]]) -> float:
    """Return the duration of one call in milliseconds."""
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1e3


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used so far."""
    return sum(psutil.Process(pid).cpu_times()[:2])
