"""The processes of a session (see setsid), including orphaned ones."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

_STATE, _SESSION = 0, 3
# Stopped, traced, or ended.
_HALTED = set("TtZX")


def members(session: int) -> list[int]:
    """Return the process ids of the members, the leader first, without zombies."""
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
    """Send a signal to processes; those that have ended are ignored."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def pause(pids: Collection[int], timeout_s: float = 10.0) -> None:
    """Send SIGSTOP, and wait until every thread has stopped.

    One thread handles the signal and stops the others: until that thread is scheduled, which takes
    a while on a busy machine, the others continue and respond.
    """
    signal_all(pids, signal.SIGSTOP)
    deadline = time.monotonic() + timeout_s
    while states := {state for pid in pids for state in _thread_states(pid)} - _HALTED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"threads of {pids} are in the states {states} after SIGSTOP")
        time.sleep(0.001)


def kill_all(session: int, timeout_s: float = 10.0) -> None:
    """Send SIGKILL until no member is left: one may have started another in the meantime."""
    deadline = time.monotonic() + timeout_s
    while members(session):
        send(session, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {members(session)} still exist after SIGKILL")
        time.sleep(0.01)


def _belongs(folder: Path, session: int) -> bool:
    fields = _fields(folder)
    return fields is not None and int(fields[_SESSION]) == session and fields[_STATE] not in "ZX"


def _thread_states(pid: int) -> Iterator[str]:
    for folder in Path(f"/proc/{pid}/task").glob("*"):
        if fields := _fields(folder):
            yield fields[_STATE]


def _fields(folder: Path) -> list[str] | None:
    """Return the fields of ``stat`` after the program name; None if the process has ended."""
    try:
        text = (folder / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name is in parentheses and may contain any character.
    return text.rpartition(")")[2].split()
