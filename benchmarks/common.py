"""Common parts of the benchmarks: options, wall and CPU time."""

from __future__ import annotations

import argparse
import time
from collections.abc import Awaitable, Callable


def options(doc: str | None, **defaults: float | str) -> argparse.Namespace:
    """Parse the command line, with an option for each default, of the same type."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        flag = "--" + name.replace("_", "-")
        parser.add_argument(flag, type=type(default), default=default, help=f"{default}")
    return parser.parse_args()


async def milliseconds(call: Callable[[], Awaitable[object]]) -> float:
    """Return the duration of one call in milliseconds."""
    start = time.perf_counter()
    await call()
    return (time.perf_counter() - start) * 1e3


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that all threads of a process have used so far."""
    # The clock of the process (clock_getcpuclockid(3)): `psutil` has steps of 10 ms.
    return time.clock_gettime((~pid << 3) | 2)
