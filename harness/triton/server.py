"""A tritonserver as a child process, for tests and for ``python -m harness.triton``."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Self

from harness.program import DIRECT, HOST, Program
from harness.triton import processes
from harness.triton.environment import find_home
from harness.triton.ports import free_ports

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108
_SHM_PREFIX = "triton_python_backend_shm_region_"
DRAIN_S = 5
"""How long a server that is being stopped waits for running requests."""

# The processes of models report their health twice as often.
_HEALTH_S = 0.6
_LOG_ERRORS, _LOG_TAIL = 10, 1000
_ERROR = re.compile(r"E\d{4} |error: ")
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT)


class TritonServer(Program):
    """A real tritonserver on a model repository; it can be restarted after it has ended.

    It listens on loopback only.  All its processes form one session, so that they can be found: the
    Python processes of its models ignore SIGTERM and survive a killed server.
    """

    _name: ClassVar[str] = "tritonserver"

    def __init__(  # noqa: PLR0913 - each has a default
        self,
        model_repository: Path,
        *,
        log: Path | None,
        grpc_port: int = 0,
        http_port: int = 0,
        metrics_port: int = 0,
        extra_args: Sequence[str] = (),
        user: int | None = None,
        groups: Sequence[int] = (),
        env: Mapping[str, str] | None = None,
        start_timeout_s: float = 60.0,
    ) -> None:
        """Configure the server, without starting it.

        A port of 0 chooses a free one, which is kept after a restart.  *extra_args* override
        earlier values of the same options.  *user*, with the group of the same number and
        additional *groups*, requires root; *env* are additional variables.
        """
        super().__init__(port=0, log=log)
        self.log = log
        self.grpc_port, self.http_port, self.metrics_port = grpc_port, http_port, metrics_port
        self._free = [name for name in _PORTS if not getattr(self, name)]
        self._repository = model_repository.absolute()
        self._extra_args = tuple(extra_args)
        self._user, self._groups = user, groups
        self._extra_env = dict(env or {})
        self._start_timeout_s = start_timeout_s
        self._paused = False

    @property
    def crashed(self) -> bool:
        """Whether tritonserver has ended by SIGSEGV or SIGABRT."""
        return self._process is not None and self._process.poll() in _CRASHES

    @property
    def grpc_address(self) -> str:
        """``host:port`` for clients; known once the server was started, and stable afterwards."""
        return f"{HOST}:{self.grpc_port}"

    def launch(self) -> None:
        """Start the server once on its current ports, without waiting until it is ready."""
        super().launch()
        _launched.add(self)

    def stop(self) -> None:
        """Stop the server gracefully, and kill remaining processes."""
        if self._process is None:
            return
        self.resume()
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(2 * DRAIN_S)
        self.kill()

    def kill(self) -> None:
        """Kill the server and the processes of its models, and remove their leftover files."""
        if self._process is not None:
            processes.kill_all(self._process.pid)
            self._process.wait()
            if self.crashed:
                _crashes.append(self.log_tail())
        self._paused = False
        _launched.discard(self)
        for leftover in self.shared_files():
            leftover.unlink(missing_ok=True)
        super().kill()

    def ensure_running(self) -> Self:
        """Start the server if it has ended, resume it if it is paused.

        24.10 sometimes crashes when requests are cancelled, and a failing test may leave it paused:
        users of a shared server call this before each use.
        """
        if not self.alive:
            self.kill()
            self.start()
        elif self._paused:
            self.resume()
        return self

    def pause(self) -> None:
        """Pause all its processes, like a machine that hangs."""
        processes.pause(processes.members(self.pid))
        self._paused = True

    def resume(self) -> None:
        """Resume paused processes: those of the models first, the server a moment later.

        Otherwise the server's health checks may consider them unhealthy and replace them while
        their responses are in flight; in that case 24.10 has returned wrong results.  NVIDIA's ONNX
        Runtime backend has no processes of its own.
        """
        processes.signal_all(processes.members(self.pid)[1:], signal.SIGCONT)
        if self._paused:
            time.sleep(_HEALTH_S)
        processes.send(self.pid, signal.SIGCONT)
        self._paused = False

    def shared_files(self) -> list[Path]:
        """Return the files in shared memory through which it exchanges tensors with its models."""
        if self._folder is None:
            return []
        return list(SHARED_MEMORY.glob(f"{_shm_prefix(self._folder)}*"))

    def metrics_text(self) -> str:
        """Return the server's metrics in the text format of Prometheus."""
        return _get(self.metrics_port, "/metrics")

    def log_tail(self) -> str:
        """Return the errors and the end of the log since the last start."""
        text = self._log_text()
        errors = [line for line in text.splitlines() if _ERROR.match(line)]
        return "\n".join([*errors[:_LOG_ERRORS], "...", text[-_LOG_TAIL:]])

    def _choose_ports(self) -> bool:
        for name, port in zip(self._free, free_ports(len(self._free)), strict=True):
            setattr(self, name, port)
        return bool(self._free)

    def _start_once(self) -> None:
        super()._start_once()
        self._free = []

    def _command(self, folder: Path) -> list[str]:
        home = find_home()
        folder.chmod(0o755)  # for another user
        home.copy_backends(folder / "backends")
        self._env = home.variables(os.environ) | self._extra_env
        options = {
            "model-repository": self._repository,
            "backend-directory": folder / "backends",
            # Unique names, which identify the leftover files of a killed server.
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
            *self._as_user(),
            str(home.server),
            *[f"--{name}={value}" for name, value in options.items()],
            # Large enough for one request; otherwise it grows by one megabyte at a time.
            f"--backend-config=python,shm-default-byte-size={16 << 20}",
            # The configurations are complete; auto-completion would start one process per model.
            "--disable-auto-complete-config",
            *self._extra_args,
        ]

    def _as_user(self) -> list[str]:
        """Return the command of util-linux that changes the user in the new process.

        Popen would do it between fork and exec, where a forked gRPC resumes its threads.
        """
        if self._user is None:
            return []
        groups = ",".join(map(str, self._groups))
        return [
            *("setpriv", f"--reuid={self._user}", f"--regid={self._user}"),
            f"--groups={groups}" if groups else "--clear-groups",
        ]

    def _is_ready(self) -> bool:
        try:
            _get(self.http_port, "/v2/health/ready")
            # The last interface that the server opens.
            _get(self.metrics_port, "/metrics")
        except OSError:  # connection refused or reset, or the response "not ready"
            return False
        return True


def crash_logs() -> list[str]:
    """Return the log tail of each server of this process that has crashed."""
    return [*_crashes, *(server.log_tail() for server in _launched if server.crashed)]


# Logs of crashed servers that have been cleaned up, and the servers that have not.
_crashes: list[str] = []
_launched: set[TritonServer] = set()

_PORTS = ("grpc_port", "http_port", "metrics_port")


def _get(port: int, path: str) -> str:
    with DIRECT.open(f"http://{HOST}:{port}{path}", timeout=5.0) as response:
        text: str = response.read().decode()
        return text


def _shm_prefix(folder: Path) -> str:
    return f"{_SHM_PREFIX}{folder.name}_"
