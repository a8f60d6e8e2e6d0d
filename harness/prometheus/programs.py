"""Locations of the programs."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import HarnessError

BINARIES = Path(__file__).parents[2] / ".venv-prometheus" / "bin"


def find(name: str) -> str:
    """Return the path of a program: the one installed by ``make``, or else one on the PATH."""
    path = shutil.which(name, path=BINARIES) or shutil.which(name)
    if path is None:
        raise HarnessError(f"{name} not found: run `make .venv-prometheus/.done`")
    return str(Path(path).absolute())
