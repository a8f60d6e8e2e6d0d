"""Node.js and Chromium, which `make .venv-node/.done` provides."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "tests" / "examples"
EXAMPLES = ROOT / "examples"
_TOOLS = ROOT / ".venv-node" / "bin"
_INSTALL = "run `make .venv-node/.done`"


def program(name: str) -> str:
    """Return the path of `node` or `chromium`."""
    path = _TOOLS / name
    assert path.exists(), f"{path} is missing: {_INSTALL}"
    return str(path)


def run_node(script: Path, *arguments: str, text: str = "") -> str:
    """Run a script with *text* as its input, and return its output."""
    command = [program("node"), str(script), *arguments]
    return subprocess.run(
        command, input=text, stdout=subprocess.PIPE, text=True, check=True, timeout=120
    ).stdout


def run_npm(*arguments: str, folder: Path = EXAMPLES / "browser") -> None:
    """Run npm in a folder: it also finds programs of packages, and their Node.js."""
    assert (folder / "node_modules").exists(), f"{folder} has no node_modules: {_INSTALL}"
    path = f"{_TOOLS}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        [program("npm"), *arguments],
        cwd=folder,
        env={**os.environ, "PATH": path},
        check=True,
        timeout=120,
    )
