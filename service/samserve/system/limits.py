"""Limits and use of the system by this process: open files, CPU cores and memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

_MAX_FILES = 1 << 16


def raise_file_limit() -> int:
    """Raise the limit of open files of this process as far as allowed; return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Some systems report no limit, which is more than is needed.
    wanted = min(hard, _MAX_FILES) if hard != resource.RLIM_INFINITY else _MAX_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return _MAX_FILES if soft == resource.RLIM_INFINITY else soft
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def core_count() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_bytes() -> int:
    """Return the most physical memory that this process has used, files mapped to it included."""
    try:
        # Of this program only; the system call's may be that of the program that started it.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kibibytes = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
        return int(kibibytes.split()[1]) << 10
    except (OSError, StopIteration):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak << 10
