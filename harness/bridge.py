"""A bridge on loopback, as a child process."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from harness.program import HOST, Program
from harness.triton.ports import free_ports


class BridgeServer(Program):
    """``samserve bridge``, ready once it has started; ``address`` is that of the admin port.

    The port of the tools stays the same when it is started again.
    """

    _name: ClassVar[str] = "samserve-bridge"
    _ready_path: ClassVar[str] = "/readyz"

    def __init__(self, settings: Mapping[str, object], *, log: Path | None = None) -> None:
        """Configure the bridge, without starting it; the keys of *settings* are dotted names."""
        super().__init__(port=0, log=log)
        self._settings = dict(settings)
        self._tools_port = free_ports(1)[0]

    @property
    def tools_url(self) -> str:
        """The URL that tools call."""
        return f"http://{HOST}:{self._tools_port}"

    def _command(self, folder: Path) -> list[str]:
        settings = {
            **self._settings,
            "listener.port": self._tools_port,
            "listener.admin_port": self.port,
        }
        flags = [f"--set={name}={value}" for name, value in settings.items()]
        return [sys.executable, "-m", "samserve", "bridge", *flags]
