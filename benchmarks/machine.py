"""The machine that a benchmark runs on, and the memory of its processes."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import psutil
from samserve.system.limits import core_count

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
LIBRARIES = ("torch", "onnxruntime", "transformers", "grpcio", "numpy")


def machine() -> str:
    """Return the processor, and how many cores this process may use."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return f"{core_count()} cores of {next(names, platform.machine())}"


def versions() -> str:
    """Return the versions of Python and of the libraries that do the work."""
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return f"Python {platform.python_version()}, {libraries}"


def commit() -> str:
    """Return the commit of the checkout, with a plus if files were changed; empty without git."""
    found = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no")
    return found + "+" * bool(found and changed)


def load_average() -> float:
    """Return the load average of the last minute."""
    return os.getloadavg()[0]


def resident(pid: int) -> int:
    """Return the resident memory of a process in bytes."""
    return int(psutil.Process(pid).memory_info().rss)


def reset_peak(pid: int) -> None:
    """Set the peak of the resident memory to its current value (proc(5), ``clear_refs``)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def peak(pid: int) -> int:
    """Return the peak of the resident memory since the last reset, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def _git(*arguments: str) -> str:
    try:
        run = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return run.stdout.strip()
