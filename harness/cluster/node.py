"""One server of a cluster, as a child process."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from harness.child import Child
from harness.cluster import view
from harness.cluster.accounts import Accounts
from harness.cluster.errors import NotReadyError, PortTakenError, wait_for
from harness.errors import HarnessError
from harness.triton import processes

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 10.0

_PORT_TAKEN = "Address already in use"
# The kernel kills a node when the thread that started it ends.  This thread lives as long as the
# program, unlike the thread of a test.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="harness-cluster")
# From util-linux: a preexec_fn of Popen would be unsafe with the threads of gRPC.
_TIED = ("setpriv", "--pdeathsig", "KILL")


@dataclass(eq=False)
class Node(Child):
    """A server that can be killed and restarted, with the same identity and its data on disk.

    It ends with this program, also if that is killed.
    """

    binary: Path
    folder: Path
    """The node's own folder, which must exist."""
    port: int
    """The server's own port; its bus port is 10000 above."""
    accounts: Accounts
    options: Mapping[str, str]
    """Directives of the configuration by name."""
    announced_port: int
    """The port that is announced to clients."""
    bus_port: int
    """The port that is announced to other nodes."""
    _paused: bool = field(default=False, init=False, repr=False)
    _client: redis.Redis | None = field(default=None, init=False, repr=False)
    _id: str = field(default="", init=False)

    host = HOST
    _tail_length: ClassVar[int] = 1500

    def __str__(self) -> str:
        return self.address

    @property
    def address(self) -> str:
        """``host:port`` of the server itself."""
        return f"{HOST}:{self.port}"

    @property
    def announced(self) -> str:
        """``host:port`` for clients."""
        return f"{HOST}:{self.announced_port}"

    @property
    def id(self) -> str:
        """The node id in the cluster, 40 hexadecimal digits; known once it has started."""
        return self._id

    @property
    def responsive(self) -> bool:
        """Whether the process runs and is not paused."""
        return self.alive and not self._paused

    @property
    def client(self) -> redis.Redis:
        """A client of this node with all permissions; `close` closes it."""
        if self._client is None:
            user, password = self.accounts.own or (None, None)
            self._client = redis.Redis(
                host=HOST,
                port=self.port,
                username=user,
                password=password,
                socket_timeout=COMMAND_TIMEOUT_S,
                socket_connect_timeout=5.0,
                retry=Retry(NoBackoff(), 0),
                protocol=2,
            )
        return self._client

    def command(self, *words: str | bytes | int) -> Any:
        """Run a command and return redis-py's reply.  Raises `redis.RedisError`."""
        # The method has no types.
        execute: Callable[..., Any] = self.client.execute_command
        return execute(*words)

    def view(self) -> view.View:
        """Return the node's view of the cluster."""
        return view.parse(self.command("CLUSTER", "NODES"))

    def start(self) -> None:
        """Start the server and wait until it responds.  Raises `HarnessError` with its log."""
        self.launch()
        self.wait_up()

    def launch(self) -> None:
        """Start the process without waiting."""
        if self.alive:
            raise HarnessError(f"{self.address} is running already")
        self._write_configuration()
        try:
            command = [*_TIED, str(self.binary), str(self._configuration)]
            self._process = _SPAWNER.submit(self._spawn, command, self.folder).result()
        except FileNotFoundError as error:
            raise HarnessError(f"{_TIED[0]} is missing, install util-linux") from error

    def wait_up(self) -> None:
        """Wait until the launched server responds, and read its id.

        Raises `PortTakenError` if its ports are in use, `HarnessError` for other failures.
        """
        try:
            wait_for(self._check_up, START_TIMEOUT_S)
        except HarnessError as error:
            self.kill()
            kind = PortTakenError if _PORT_TAKEN in self._log_text() else HarnessError
            raise kind(f"{self.address} did not start: {error}\n{self.log_tail()}") from error

    def kill(self) -> None:
        """Kill the process (SIGKILL), and wait for its end."""
        if self._process is None:
            return
        # The whole session, because a server forks to synchronize a replica.
        processes.kill_all(self._process.pid)
        self._process.wait()
        self._process, self._paused = None, False

    def stop_process(self) -> None:
        """Pause the process (SIGSTOP), like a machine that hangs."""
        processes.pause([self.pid])
        self._paused = True

    def resume(self) -> None:
        """Resume the process (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def lose_data(self) -> None:
        """Remove the data on disk while the server is stopped; the node keeps its identity."""
        if self.alive:
            raise HarnessError(f"{self.address} is running")
        shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
        (self.folder / "appendonly.aof").unlink(missing_ok=True)

    def close(self) -> None:
        """Kill it and close the connections to it."""
        self.kill()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _log_path(self) -> Path:
        return self.folder / "server.log"

    @property
    def _configuration(self) -> Path:
        return self.folder / "server.conf"

    def _write_configuration(self) -> None:
        lines = [f"{name} {value}" for name, value in self.options.items()]
        self._configuration.write_text("\n".join([*lines, *self.accounts.directives(), ""]))

    def _check_up(self) -> None:
        if not self.alive:
            raise HarnessError("the process has ended")
        info = self.client.info("server")
        # Another server may use the port, and this one is about to fail.
        if info["process_id"] != self.pid:
            raise NotReadyError("another server responds at its port")
        self._id = self.command("CLUSTER", "MYID").decode()
