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


def available_memory_bytes() -> int | None:
    """Return how much more memory this process may use: its cgroup's, and the machine's.

    None if neither is known.
    """
    known = [each for each in (_machine_memory(), _cgroup_memory()) if each is not None]
    return min(known, default=None)


def _machine_memory() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        kibibytes = next(line for line in lines if line.startswith("MemAvailable:"))
        return int(kibibytes.split()[1]) << 10
    except (OSError, StopIteration):
        return None


def _cgroup_memory() -> int | None:
    """Return the rest of the limit of a container, whose own cgroup is the root of the mount."""
    folder = Path("/sys/fs/cgroup")
    try:
        limit = int((folder / "memory.max").read_text(encoding="ascii"))
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        # Cached file pages are released as needed.
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, limit - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):  # no limit reads "max"
        return None
