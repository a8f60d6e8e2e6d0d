"""A program that listens on one port of loopback, as a child of this process."""

from __future__ import annotations

import atexit
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

from harness.child import Child
from harness.errors import HarnessError
from harness.triton import processes
from harness.triton.ports import free_ports

HOST = "127.0.0.1"
START_TIMEOUT_S = 120.0
# Requests to loopback must not go to a proxy that the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_START_ATTEMPTS = 3
_POLL_S = 0.02
_ANSWER_TIMEOUT_S = 10.0
_PORT_TAKEN = "already in use"


class Program(Child):
    """A context manager, in which the program runs and answers.  It ends at once, by SIGKILL."""

    _name: ClassVar[str]
    _ready_path: ClassVar[str]
    _start_timeout_s = START_TIMEOUT_S
    # None: those of this process.
    _env: Mapping[str, str] | None = None

    def __init__(self, *, port: int, log: Path | None) -> None:
        """Describe it.

        ``port`` 0 chooses a free one.  The log is appended to the file ``log``; if it is None, the
        log is kept for errors at start alone.
        """
        self.port = port
        self._chosen_port = port
        self._log = log
        self._folder: Path | None = None

    def __str__(self) -> str:
        return self._name

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def address(self) -> str:
        """``host:port``; known once it was started."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """Where it answers over HTTP."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Return when it answers; raise `HarnessError` with the log's end otherwise."""
        if self._process is not None:
            raise HarnessError(f"{self._name} runs already")
        for left in reversed(range(_START_ATTEMPTS)):
            chosen = self._choose_ports()
            try:
                self._start_once()
            except HarnessError as error:
                # Somebody else may take a port before the program does.
                if not (chosen and left and _PORT_TAKEN in str(error)):
                    raise
            else:
                return

    def terminate(self) -> None:
        """Send it SIGTERM."""
        processes.signal_all([self.pid], signal.SIGTERM)

    def kill(self) -> None:
        """End it, and remove its files."""
        if self._process is not None:
            processes.kill_all(self._process.pid)
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.kill)

    def wait(self) -> int:
        """Wait until it ends by itself, and return its exit status."""
        if self._process is None:
            raise HarnessError(f"{self._name} is not running")
        return self._process.wait()

    def launch(self) -> None:
        """Start it once, on the ports that it has, and wait for nothing."""
        self._folder = Path(tempfile.mkdtemp(prefix=f"samserve-{self._name}-"))
        atexit.register(self.kill)
        try:
            self._process = self._spawn(self._command(self._folder), self._folder, self._env)
        except BaseException:
            self.kill()
            raise

    @abstractmethod
    def _command(self, folder: Path) -> list[str]:
        """Write what the program reads into its folder, and return the command that runs it."""

    def _choose_ports(self) -> bool:
        """Choose the ports that are not given; return whether there were any."""
        if self._chosen_port and _is_taken(self._chosen_port):
            raise HarnessError(f"port {self._chosen_port} is {_PORT_TAKEN}")
        self.port = self._chosen_port or free_ports(1)[0]
        return not self._chosen_port

    def _start_once(self) -> None:
        self.launch()
        assert self._process is not None
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def _log_path(self) -> Path:
        if self._log is not None:
            return self._log.absolute()
        if self._folder is None:
            raise HarnessError(f"{self._name} is not running")
        return self._folder / "log"

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        # In this order: somebody else may answer on a port that the program could not get.
        while not (self._answers() and process.poll() is None):
            if process.poll() is not None:
                raise HarnessError(f"{self._name} ended at start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"{self._name} was not ready in {self._start_timeout_s:g} s:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        try:
            with DIRECT.open(self.url + self._ready_path, timeout=_ANSWER_TIMEOUT_S):
                return True
        except OSError:  # refused, reset, or answered "not ready"
            return False


def _is_taken(port: int) -> bool:
    """Whether somebody listens there, who would be taken for the program."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
