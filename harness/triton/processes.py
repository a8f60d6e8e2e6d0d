"""The processes of a session (in the sense of setsid), however they came to be orphaned."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_STATE, _SESSION = 0, 3


def members(session: int) -> list[int]:
    """Process ids of the living members, the leader first; zombies are not among them."""
    found = [
        int(folder.name)
        for folder in Path("/proc").iterdir()
        if folder.name.isdecimal() and _belongs(folder, session)
    ]
    return sorted(found, key=lambda pid: (pid != session, pid))


def send(session: int, number: signal.Signals) -> None:
    """Send a signal to every member."""
    signal_all(members(session), number)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    """Send a signal to processes; those that are gone are passed over."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def kill_all(session: int, timeout_s: float = 10.0) -> None:
    """SIGKILL until no member is left: one may have started another in the meantime."""
    deadline = time.monotonic() + timeout_s
    while members(session):
        send(session, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {members(session)} outlive SIGKILL")
        time.sleep(0.01)


def _belongs(folder: Path, session: int) -> bool:
    try:
        text = (folder / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    # The name of the program stands in parentheses and may contain anything.
    fields = text.rpartition(")")[2].split()
    return int(fields[_SESSION]) == session and fields[_STATE] not in "ZX"
