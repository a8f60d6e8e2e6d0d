"""One server of a cluster, as a child of this process."""

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
from harness.cluster.errors import NotYetError, PortTakenError, wait_for
from harness.errors import HarnessError
from harness.triton import processes

HOST = "127.0.0.1"
START_TIMEOUT_S = 60.0
COMMAND_TIMEOUT_S = 10.0

_PORT_TAKEN = "Address already in use"
# The kernel ends a node when the thread that started it ends.  This one lives as long as the
# program, whatever becomes of the thread of a test.
_SPAWNER = ThreadPoolExecutor(1, thread_name_prefix="harness-cluster")
# By util-linux: what Popen runs between fork and exec could meet the threads of a forked gRPC.
_TIED = ("setpriv", "--pdeathsig", "KILL")


@dataclass(eq=False)
class Node(Child):
    """A server that can be killed and started again, as who it was, with what it had on disk.

    It ends with this program, also if that is killed.
    """

    binary: Path
    folder: Path
    """Of this node alone; it must exist."""
    port: int
    """Where it listens itself; the bus listens 10000 above."""
    accounts: Accounts
    options: Mapping[str, str]
    """Directives of the configuration, by name."""
    announced_port: int
    """Where clients are told to find it."""
    bus_port: int
    """Where other nodes are told to find it."""
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
        """Its name in the cluster, 40 hexadecimal digits; known once it has started."""
        return self._id

    @property
    def answering(self) -> bool:
        """Whether it lives and is not paused."""
        return self.alive and not self._paused

    @property
    def client(self) -> redis.Redis:
        """A client of this node alone, with everything allowed; `close` closes it."""
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
        """Run a command and return the answer, as redis-py has it; it raises `redis.RedisError`."""
        # Which has no types here.
        execute: Callable[..., Any] = self.client.execute_command
        return execute(*words)

    def view(self) -> view.View:
        """Return what the node says about the cluster."""
        return view.parse(self.command("CLUSTER", "NODES"))

    def start(self) -> None:
        """Return when it answers; raise `HarnessError` with the log's end otherwise."""
        self.launch()
        self.wait_up()

    def launch(self) -> None:
        """Start the process, without waiting for anything."""
        if self.alive:
            raise HarnessError(f"{self.address} is running already")
        self._write_configuration()
        try:
            command = [*_TIED, str(self.binary), str(self._configuration)]
            self._process = _SPAWNER.submit(self._spawn, command, self.folder).result()
        except FileNotFoundError as error:
            raise HarnessError(f"no {_TIED[0]}, which is in util-linux") from error

    def wait_up(self) -> None:
        """Wait until what was launched answers, and learn its id.

        Raises `PortTakenError` if it could not have its ports, and `HarnessError` for all else.
        """
        try:
            wait_for(self._check_up, START_TIMEOUT_S)
        except HarnessError as error:
            self.kill()
            kind = PortTakenError if _PORT_TAKEN in self._log_text() else HarnessError
            raise kind(f"{self.address} did not start: {error}\n{self.log_tail()}") from error

    def kill(self) -> None:
        """SIGKILL, and wait until the process is gone."""
        if self._process is None:
            return
        # Its session, because it forks to hand its data to a replica.
        processes.kill_all(self._process.pid)
        self._process.wait()
        self._process, self._paused = None, False

    def stop_process(self) -> None:
        """Stop it in its tracks (SIGSTOP), like a machine that hangs."""
        processes.pause([self.pid])
        self._paused = True

    def resume(self) -> None:
        """Let it go on (SIGCONT)."""
        os.kill(self.pid, signal.SIGCONT)
        self._paused = False

    def lose_data(self) -> None:
        """Remove what it has on disk, while it does not run; it is still who it was."""
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
            raise HarnessError("it ended")
        info = self.client.info("server")
        # Another server may have the port, and ours is about to find that out.
        if info["process_id"] != self.pid:
            raise NotYetError("another server answers at its port")
        self._id = self.command("CLUSTER", "MYID").decode()
