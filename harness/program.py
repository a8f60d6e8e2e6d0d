"""A program that listens on one port of loopback, as a child process."""

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
# Requests to loopback must not use a proxy from the environment.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

_START_ATTEMPTS = 3
_POLL_S = 0.02
_RESPONSE_TIMEOUT_S = 10.0
_PORT_IN_USE = "already in use"


class Program(Child):
    """A context manager during which the program runs and responds.  It is ended by SIGKILL."""

    _name: ClassVar[str]
    _ready_path: ClassVar[str]
    _start_timeout_s = START_TIMEOUT_S
    # None: the environment of this process.
    _env: Mapping[str, str] | None = None

    def __init__(self, *, port: int, log: Path | None) -> None:
        """Configure the program, without starting it.

        ``port`` 0 chooses a free one.  The log is appended to the file ``log``; if it is None, the
        log is only kept for errors at startup.
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
        """``host:port``; known once the program was started."""
        return f"{HOST}:{self.port}"

    @property
    def url(self) -> str:
        """The HTTP URL of the program."""
        return f"http://{self.address}"

    def start(self) -> None:
        """Start the program and wait until it is ready.

        Raises `HarnessError` with the end of the log if that fails.
        """
        if self._process is not None:
            raise HarnessError(f"{self._name} is already running")
        for left in reversed(range(_START_ATTEMPTS)):
            chosen = self._choose_ports()
            try:
                self._start_once()
            except HarnessError as error:
                # Another process may bind a port before the program does.
                if not (chosen and left and _PORT_IN_USE in str(error)):
                    raise
            else:
                return

    def terminate(self) -> None:
        """Send SIGTERM to the program."""
        processes.signal_all([self.pid], signal.SIGTERM)

    def kill(self) -> None:
        """Kill the program, and remove its files."""
        if self._process is not None:
            processes.kill_all(self._process.pid)
            self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None
        atexit.unregister(self.kill)

    def wait(self) -> int:
        """Wait until the program ends by itself, and return its exit status."""
        if self._process is None:
            raise HarnessError(f"{self._name} is not running")
        return self._process.wait()

    def launch(self) -> None:
        """Start the program once on its current ports, without waiting until it is ready."""
        self._folder = Path(tempfile.mkdtemp(prefix=f"samserve-{self._name}-"))
        atexit.register(self.kill)
        try:
            self._process = self._spawn(self._command(self._folder), self._folder, self._env)
        except BaseException:
            self.kill()
            raise

    @abstractmethod
    def _command(self, folder: Path) -> list[str]:
        """Write the program's input files into its folder, and return the command that runs it."""

    def _choose_ports(self) -> bool:
        """Choose the ports that were not specified; return whether there were any."""
        if self._chosen_port and _is_in_use(self._chosen_port):
            raise HarnessError(f"port {self._chosen_port} is {_PORT_IN_USE}")
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
        # In this order: another process may respond on a port that the program could not bind.
        while not (self._is_ready() and process.poll() is None):
            if process.poll() is not None:
                raise HarnessError(f"{self._name} ended at start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"{self._name} was not ready in {self._start_timeout_s:g} s:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _is_ready(self) -> bool:
        try:
            with DIRECT.open(self.url + self._ready_path, timeout=_RESPONSE_TIMEOUT_S):
                return True
        except OSError:  # connection refused or reset, or the response "not ready"
            return False


def _is_in_use(port: int) -> bool:
    """Return whether another process listens there, which would be mistaken for the program."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return True
    return False
