"""A gateway on loopback, as a child process."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from harness.program import HOST, Program
from harness.triton.ports import free_ports

_GRACE_S = 10.0


class GatewayServer(Program):
    """``samserve serve``, ready once it has started; ``address`` is that of the admin port."""

    _name: ClassVar[str] = "samserve"
    _ready_path: ClassVar[str] = "/readyz"

    def __init__(
        self,
        settings: Mapping[str, object],
        *,
        program: Sequence[str] = ("-m", "samserve"),
        port: int = 0,
        admin_port: int = 0,
        log: Path | None = None,
    ) -> None:
        """Configure the gateway, without starting it.

        The keys of *settings* are their names with a dot; *program* is what Python runs, for
        instance a file that accepts the same arguments; a port of 0 chooses a free one.
        """
        super().__init__(port=admin_port, log=log)
        self._settings = dict(settings)
        self._program = tuple(program)
        self._api_port = port

    @property
    def target(self) -> str:
        """The address of the API, as ``host:port``; known once the gateway was started."""
        return f"{HOST}:{self._api_port}"

    def kill(self) -> None:
        """Terminate the gateway gracefully, or kill it after a timeout."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_S)
        super().kill()

    def _command(self, folder: Path) -> list[str]:
        self._api_port = self._api_port or free_ports(1)[0]
        settings = {
            **self._settings,
            "server.port": self._api_port,
            "server.admin_port": self.port,
        }
        flags = [f"--set={name}={value}" for name, value in settings.items()]
        return [sys.executable, *self._program, "serve", *flags]
