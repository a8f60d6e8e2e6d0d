"""Where the programs are."""

from __future__ import annotations

import shutil
from pathlib import Path

from harness.errors import HarnessError

BINARIES = Path(__file__).parents[2] / ".venv-prometheus" / "bin"


def find(name: str) -> str:
    """Return the program of that name: what ``make`` got, or else what is on the PATH."""
    found = shutil.which(name, path=BINARIES) or shutil.which(name)
    if found is None:
        raise HarnessError(f"no {name} was found: make .venv-prometheus/.done")
    return str(Path(found).absolute())
