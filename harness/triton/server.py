"""A tritonserver as a child of this process, for tests and for ``python -m harness.triton``."""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Self

from harness.triton import processes
from harness.triton.environment import HarnessError, TritonHome, find_home
from harness.triton.ports import free_ports

HOST = "127.0.0.1"
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_SHM_PREFIX = "triton_python_backend_shm_region_"
DRAIN_S = 5
"""How long a server that is asked to stop waits for running requests."""

_START_ATTEMPTS = 3
_POLL_S = 0.02
# The processes of models say twice as often that they are well.
_HEALTH_S = 0.6
_LOG_ERRORS, _LOG_TAIL = 10, 1000
_ERROR = re.compile(r"E\d{4} |error: ")
_PORT_TAKEN = "already in use"
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)


@dataclass(kw_only=True, eq=False)
class _Options:
    log: Path | None
    """File that the server's log is appended to; None: this process's stderr."""
    grpc_port: int = 0
    """0 chooses a free port, which a restart keeps; so do the next two."""
    http_port: int = 0
    metrics_port: int = 0
    extra_args: Sequence[str] = ()
    """Further arguments; of two values for an option the server takes the last."""
    user: int | None = None
    """Run as this user (which takes root), with ``group`` and the further ``groups``."""
    group: int | None = None
    groups: Sequence[int] | None = None
    env: Mapping[str, str] | None = None
    """Environment variables to add."""
    start_timeout_s: float = 60.0


@dataclass(eq=False)
class TritonServer(_Options):
    """The real tritonserver on a model repository; it can be started again after it ended.

    It listens on loopback only.  All its processes form one session, which is how they are found
    again: the Python processes of its models ignore SIGTERM and outlive a killed server.
    """

    model_repository: Path
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _folder: Path | None = field(default=None, init=False, repr=False)
    _paused: bool = field(default=False, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        # At once: ending in good order takes four seconds.
        self.kill()

    @property
    def pid(self) -> int:
        """Process id of tritonserver, which is its session too."""
        if self._process is None:
            raise HarnessError("tritonserver is not running")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether tritonserver runs; it may have crashed."""
        return self._process is not None and self._process.poll() is None

    @property
    def crashed(self) -> bool:
        """Whether tritonserver has ended by SIGSEGV or SIGABRT."""
        return self._process is not None and self._process.poll() in _CRASHES

    @property
    def grpc_address(self) -> str:
        """``host:port`` for clients; known once the server was started, and kept afterwards."""
        return f"{HOST}:{self.grpc_port}"

    @property
    def http_address(self) -> str:
        """``host:port`` of the HTTP interface."""
        return f"{HOST}:{self.http_port}"

    def start(self) -> None:
        """Return when every model is ready; raise `HarnessError` with the log's end otherwise."""
        if self._process is not None:
            raise HarnessError("tritonserver runs already")
        chosen = [name for name in _PORTS if not getattr(self, name)]
        for attempt in range(_START_ATTEMPTS):
            for name, port in zip(chosen, free_ports(len(chosen)), strict=True):
                setattr(self, name, port)
            try:
                self._start_once()
            except HarnessError as error:
                # Somebody else may take a port before the server does.
                last = attempt == _START_ATTEMPTS - 1
                if last or not chosen or _PORT_TAKEN not in str(error):
                    raise
            else:
                return

    def launch(self) -> None:
        """Start the server once, on the ports that it was given, and wait for nothing."""
        self._folder = Path(tempfile.mkdtemp(prefix="samserve-triton-"))
        atexit.register(self.kill)
        try:
            self._folder.chmod(0o755)  # for another user
            self._process = self._spawn(find_home(), self._folder)
            _launched.add(self)
        except BaseException:
            self.kill()
            raise

    def terminate(self) -> None:
        """Ask the server to end, which drains requests."""
        processes.signal_all([self.pid], signal.SIGTERM)

    def stop(self) -> None:
        """Ask the server to end, and kill what is left of it."""
        if self._process is None:
            return
        self.resume()
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2 * DRAIN_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL the server and the processes of its models, and remove what they leave behind."""
        if self._process is not None:
            processes.kill_all(self._process.pid)
            self._process.wait()
            if self.crashed:
                _crashes.append(self.log_tail())
            self._process = None
            self._paused = False
        _launched.discard(self)
        for leftover in self.shared_files():
            leftover.unlink(missing_ok=True)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        atexit.unregister(self.kill)

    def revive(self) -> Self:
        """Have it running: start it if it has ended, resume it if it is paused.

        24.10 crashes now and then when requests are cancelled, and a test that fails may leave it
        paused: whatever shares a server calls this before each use.
        """
        if not self.alive:
            self.kill()
            self.start()
        elif self._paused:
            self.resume()
        return self

    def pause(self) -> None:
        """Stop all its processes in their tracks, like a machine that hangs."""
        processes.pause(processes.members(self.pid))
        self._paused = True

    def resume(self) -> None:
        """Let paused processes go on: those of the models first, the server a moment later.

        Otherwise the server may find them unhealthy, which it looks for all the time, and replace
        them while their answers are under way; 24.10 was then seen to answer wrongly.  NVIDIA's
        ONNX Runtime backend has no processes of its own.
        """
        processes.signal_all(processes.members(self.pid)[1:], signal.SIGCONT)
        if self._paused:
            time.sleep(_HEALTH_S)
        processes.send(self.pid, signal.SIGCONT)
        self._paused = False

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit status."""
        if self._process is None:
            raise HarnessError("tritonserver is not running")
        return self._process.wait()

    def shared_files(self) -> list[Path]:
        """The files in shared memory that it exchanges tensors with its models through."""
        if self._folder is None:
            return []
        return list(SHARED_MEMORY.glob(f"{_shm_prefix(self._folder)}*"))

    def metrics_text(self) -> str:
        """Return the server's metrics in the text format of Prometheus."""
        return _get(self.metrics_port, "/metrics")

    def log_tail(self) -> str:
        """Return errors and the end of what the server has logged since it was started."""
        if self.log is None:
            return "(see stderr)"
        with self.log.open("rb") as log:
            log.seek(self._log_start)
            text = log.read().decode(errors="replace")
        errors = [line for line in text.splitlines() if _ERROR.match(line)]
        return "\n".join([*errors[:_LOG_ERRORS], "...", text[-_LOG_TAIL:]])

    def _start_once(self) -> None:
        self.launch()
        assert self._process is not None
        try:
            self._wait_ready(self._process)
        except BaseException:
            self.kill()
            raise

    def _spawn(self, home: TritonHome, folder: Path) -> subprocess.Popen[bytes]:
        home.copy_backends(folder / "backends")
        with self._open_log() as log:
            self._log_start = log.seek(0, os.SEEK_END) if self.log else 0
            return subprocess.Popen(
                [*self._as_user(), *self._command(home, folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=home.variables(os.environ) | dict(self.env or {}),
                start_new_session=True,
            )

    def _as_user(self) -> list[str]:
        """Change the user in the new process, by util-linux.

        Popen would do it between fork and exec, where the threads of a forked gRPC come to life.
        """
        if self.user is None:
            return []
        groups = ",".join(map(str, self.groups or ()))
        return [
            *("setpriv", f"--reuid={self.user}", f"--regid={self.group}"),
            f"--groups={groups}" if groups else "--clear-groups",
        ]

    @contextlib.contextmanager
    def _open_log(self) -> Iterator[IO[bytes]]:
        if self.log is None:
            yield sys.stderr.buffer
            return
        with self.log.open("ab") as log:
            yield log

    def _command(self, home: TritonHome, folder: Path) -> list[str]:
        options = {
            "model-repository": self.model_repository.absolute(),
            "backend-directory": folder / "backends",
            # Its own names, so that what a killed server leaves behind can be told from others'.
            "backend-config": f"python,shm-region-prefix-name={_shm_prefix(folder)}",
            "grpc-address": HOST,
            "grpc-port": self.grpc_port,
            "http-address": HOST,
            "http-port": self.http_port,
            "metrics-address": HOST,
            "metrics-port": self.metrics_port,
            "allow-gpu-metrics": "false",
            "pinned-memory-pool-byte-size": 0,
            "exit-timeout-secs": DRAIN_S,
            "log-verbose": 0,
        }
        return [
            str(home.server),
            *[f"--{name}={value}" for name, value in options.items()],
            # Room for one request; it grows for larger ones, a megabyte at a time if this is small.
            f"--backend-config=python,shm-default-byte-size={16 << 20}",
            # The configurations are complete, and completing costs one more process for each model.
            "--disable-auto-complete-config",
            *self.extra_args,
        ]

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + self.start_timeout_s
        while not self._answers():
            if process.poll() is not None:
                raise HarnessError(f"tritonserver ended at start:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise HarnessError(
                    f"tritonserver was not ready in {self.start_timeout_s} s:\n{self.log_tail()}"
                )
            time.sleep(_POLL_S)

    def _answers(self) -> bool:
        try:
            _get(self.http_port, "/v2/health/ready")
            # The last interface that the server opens.
            _get(self.metrics_port, "/metrics")
        except OSError:  # refused, reset, or answered "not ready"
            return False
        return True


def crashes() -> list[str]:
    """Return what each server of this process that has crashed said last."""
    return [*_crashes, *(server.log_tail() for server in _launched if server.crashed)]


# Of servers that have been cleaned up, and those that have not.
_crashes: list[str] = []
_launched: set[TritonServer] = set()

_PORTS = ("grpc_port", "http_port", "metrics_port")
# Requests to loopback must not go to a proxy that the environment names.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _get(port: int, path: str) -> str:
    with _DIRECT.open(f"http://{HOST}:{port}{path}", timeout=5.0) as answer:
        text: str = answer.read().decode()
        return text


def _shm_prefix(folder: Path) -> str:
    return f"{_SHM_PREFIX}{folder.name}_"
