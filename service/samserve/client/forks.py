"""Clients in processes that fork: gunicorn, celery, data loaders, `multiprocessing`.

gRPC is usable in a forked child only if it was shut down, or inactive, in the parent.  While a
channel exists, the polling thread of `grpc.aio` is active: in a child that is forked meanwhile, any
channel, even a new one, crashes or blocks for ever.  So before a fork every client without a call
in flight drops its channel, which ends that thread, and opens another at its next call.  Where that
was not possible, clients in the child raise at once.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

# The polling thread of `grpc.aio`; there is no public way to detect it.
_POLLER = "(_poll_wrapper)"
# Threads of gRPC's core by their names in Linux, which end with its last channel.
_CORE = ("grpc", "event_engine", "lifeguard")
_TASKS = Path("/proc/self/task")
# How long a fork waits for them; they never end if other code in this process uses gRPC.
_SHUTDOWN_TIMEOUT_S = 2.0
_POLL_S = 0.001


class ForkListener(Protocol):
    """An object that is notified of forks."""

    def before_fork(self) -> bool:
        """Release gRPC unless it is in use; return whether it is released.  Thread-safe."""

    def after_fork(self) -> None:
        """Reset, in the child, the state that belongs to the parent."""


class _Forks:
    """The fork handling of this process."""

    def __init__(self) -> None:
        self._listeners: weakref.WeakSet[ForkListener] = weakref.WeakSet()
        # Whether gRPC may have been used since it was last known to be shut down.
        self._used = False
        self._in_use = False
        self._unusable = False

    def register(self, listener: ForkListener) -> None:
        """Call the methods of *listener* at every fork, as long as something refers to it."""
        self._listeners.add(listener)
        self._used = True

    def mark_used(self) -> None:
        """Record that gRPC is about to be used."""
        self._used = True

    def check_usable(self) -> None:
        """Raise `RuntimeError` in a process in which gRPC would crash or block for ever."""
        if self._unusable:
            raise RuntimeError(
                "gRPC cannot work in this process: it was forked while the parent had a call in "
                "flight. Fork when no call is in flight, or before the first one, or start "
                "processes with multiprocessing's 'spawn' or 'forkserver'"
            )

    def before(self) -> None:
        active = [each for each in list(self._listeners) if not each.before_fork()]
        if self._used and not active:
            # A reference cycle may hold a channel.
            if _is_polling():
                gc.collect()
            _wait_until_shut_down()
            self._used = False
        self._in_use = _is_polling()

    def in_child(self) -> None:
        self._unusable = self._unusable or self._in_use
        for listener in list(self._listeners):
            listener.after_fork()


def _is_polling() -> bool:
    """Return whether the polling thread of `grpc.aio` runs in this process."""
    return any(_POLLER in thread.name for thread in threading.enumerate())


def _wait_until_shut_down() -> None:
    """Wait until gRPC's core has ended in its own threads, with a timeout for other users."""
    deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
    while (_is_polling() or _core_threads()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _core_threads() -> int:
    ours = {thread.native_id for thread in threading.enumerate()}
    others = [task for task in _TASKS.glob("*") if int(task.name) not in ours]
    return sum(_name_of(task).startswith(_CORE) for task in others)


def _name_of(task: Path) -> str:
    try:
        return (task / "comm").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it has ended


_forks = _Forks()
register, mark_used, check_usable = _forks.register, _forks.mark_used, _forks.check_usable
# Windows has no fork.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_forks.before, after_in_child=_forks.in_child)
