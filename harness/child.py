"""A process of ours, with what it says."""

from __future__ import annotations

import os
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.errors import HarnessError


class Child(ABC):
    """A process in a session of its own, whose output is appended to a log.

    It may be started again after it has ended.
    """

    _tail_length: ClassVar[int] = 2000

    _process: subprocess.Popen[bytes] | None = None
    # Where the log of its last start begins, in bytes.
    _log_start = 0

    @property
    def pid(self) -> int:
        """Process id, which is its session too."""
        if self._process is None:
            raise HarnessError(f"{self} is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs, be it paused; it may have ended by itself."""
        return self._process is not None and self._process.poll() is None

    def log_tail(self) -> str:
        """Return the end of what it has logged since it was started last."""
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
        """Return the file that the log is appended to, or a device."""

    def _spawn(
        self, command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start *command* in *folder*, with the variables of this process if *env* is None."""
        with self._log_path().open("ab") as log:
            # A pipe or a terminal has no place to go back to.
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
