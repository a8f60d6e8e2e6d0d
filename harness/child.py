"""A child process and its log."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.errors import HarnessError


class Child(ABC):
    """A process in its own session, whose output is appended to a log.

    It can be restarted after it has ended.
    """

    _tail_length: ClassVar[int] = 2000

    _process: subprocess.Popen[bytes] | None = None
    # Offset in bytes where the log of the last start begins.
    _log_start = 0

    @property
    def pid(self) -> int:
        """The process id, which is also its session id."""
        if self._process is None:
            raise HarnessError(f"{self} is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process exists, even if it is paused; it may have ended by itself."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        """Return the end of the log since the last start."""
        return self._log_text()[-self._tail_length :]

    def _log_text(self) -> str:
        path = self._log_path()
        if not path.is_file():
            return "" if not path.exists() else f"(see {path})"
        with path.open("rb") as log:
            log.seek(self._log_start)
            return log.read().decode(errors="replace")

    @abstractmethod
    def _log_path(self) -> Path:
        """Return the file or device that the log is appended to."""

    def _spawn(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start *command* in *folder*, with the environment of this process if *env* is None."""
        with self._log_path().open("ab") as log:
            # A pipe or a terminal has no offset.
            self._log_start = log.seek(0, os.SEEK_END) if log.seekable() else 0
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=env,
                start_new_session=True,
            )
