"""The processes of a session (in the sense of setsid), however they came to be orphaned."""

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


def pause(pids: Collection[int], timeout_s: float = 10.0) -> None:
    """SIGSTOP, and wait until every thread has stopped.

    The kernel lets one thread take the signal and stops the others from there: until that thread
    has its turn, which takes a while on a busy machine, the others go on and answer.
    """
    signal_all(pids, signal.SIGSTOP)
    deadline = time.monotonic() + timeout_s
    while states := {state for pid in pids for state in _thread_states(pid)} - _HALTED:
        if time.monotonic() > deadline:
            raise TimeoutError(f"threads of {pids} are in the states {states} after SIGSTOP")
        time.sleep(0.001)


def kill_all(session: int, timeout_s: float = 10.0) -> None:
    """SIGKILL until no member is left: one may have started another in the meantime."""
    deadline = time.monotonic() + timeout_s
    while members(session):
        send(session, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes {members(session)} outlive SIGKILL")
        time.sleep(0.01)


def _belongs(folder: Path, session: int) -> bool:
    fields = _fields(folder)
    return fields is not None and int(fields[_SESSION]) == session and fields[_STATE] not in "ZX"


def _thread_states(pid: int) -> Iterator[str]:
    for folder in Path(f"/proc/{pid}/task").glob("*"):
        if fields := _fields(folder):
            yield fields[_STATE]


def _fields(folder: Path) -> list[str] | None:
    """What ``stat`` says behind the name of the program; None if the process is gone."""
    try:
        text = (folder / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name stands in parentheses and may contain anything.
    return text.rpartition(")")[2].split()
