"""Clients in processes that fork: gunicorn, celery, data loaders, `multiprocessing`.

gRPC is usable in a forked child only if the parent had shut it down, or had nothing under way.  The
thread that `grpc.aio` waits in as long as there is a channel is always under way: a child that is
forked beside it crashes or waits for ever with any channel, also a new one.  So before a fork every
client that has no call under way drops its channel, which ends that thread, and opens another at
its next call.  Where that was not possible, clients in the child raise at once.
"""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

# In which `grpc.aio` waits; there is no public way to ask whether it does.
_POLLER = "(_poll_wrapper)"
# Threads of gRPC's core by their names in Linux, which come to an end with its last channel.
_CORE = ("grpc", "event_engine", "lifeguard")
_TASKS = Path("/proc/self/task")
# How long a fork waits for them; they stay for ever where others use gRPC in this process too.
_SETTLED_WITHIN_S = 2.0
_POLL_S = 0.001


class Forking(Protocol):
    """What has to know of forks."""

    def before_fork(self) -> bool:
        """Let go of gRPC, if nothing is under way; say whether.  May be called in any thread."""

    def after_fork(self) -> None:
        """Forget, in the child, what only the parent still has."""


class _Forks:
    """What this process knows of its forks."""

    def __init__(self) -> None:
        self._watched: weakref.WeakSet[Forking] = weakref.WeakSet()
        # Whether gRPC may have been used since it was last seen to be shut down.
        self._used = False
        self._in_use = False
        self._unusable = False

    def watch(self, one: Forking) -> None:
        """Have its methods called at every fork, as long as something refers to it."""
        self._watched.add(one)
        self._used = True

    def note_use(self) -> None:
        """Say that gRPC is about to be used."""
        self._used = True

    def check_usable(self) -> None:
        """Raise `RuntimeError` in a process in which gRPC can only crash or wait for ever."""
        if self._unusable:
            raise RuntimeError(
                "gRPC cannot work in this process: it was forked while the parent had a call under "
                "way. Fork when no call is under way, or before the first one, or start processes "
                "with multiprocessing's 'spawn' or 'forkserver'"
            )

    def before(self) -> None:
        held = [one for one in list(self._watched) if not one.before_fork()]
        if self._used and not held:
            # A channel may be held by what is referred to by nothing but itself.
            if _is_polling():
                gc.collect()
            _wait_until_shut_down()
            self._used = False
        self._in_use = _is_polling()

    def in_child(self) -> None:
        self._unusable = self._unusable or self._in_use
        for one in list(self._watched):
            one.after_fork()


def _is_polling() -> bool:
    """Return whether `grpc.aio` waits in this process."""
    return any(_POLLER in thread.name for thread in threading.enumerate())


def _wait_until_shut_down() -> None:
    """Wait for gRPC's core, which ends in a thread of its own; not long, if it has other users."""
    deadline = time.monotonic() + _SETTLED_WITHIN_S
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
watch, note_use, check_usable = _forks.watch, _forks.note_use, _forks.check_usable
os.register_at_fork(before=_forks.before, after_in_child=_forks.in_child)
