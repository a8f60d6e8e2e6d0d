"""Virtual environments that wheels are installed in."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Environment:
    """A virtual environment, without pip; ``site`` is the folder of its packages."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> Environment:
        run(sys.executable, "-m", "venv", "--without-pip", str(folder))
        return cls(folder)

    @property
    def site(self) -> Path:
        (found,) = self.folder.glob("lib/python*/site-packages")
        return found

    def install(self, *arguments: str | Path) -> None:
        pip("--python", self.program("python"), "install", "--no-compile", *arguments)

    def add_dependencies(self) -> None:
        """Use the packages of this environment, without its installation of this repository.

        That one is editable, and `.pth` files have an effect in their environment's folder only.
        """
        others = Path(pytest.__file__).parents[1]
        (self.site / "others.pth").write_text(f"{others}\n", encoding="utf-8")

    def program(self, name: str) -> Path:
        return self.folder / "bin" / name


def clean_environment() -> dict[str, str]:
    """Return the environment of this process without settings of its Python."""
    return {name: os.environ[name] for name in os.environ if not name.startswith("PYTHON")}


def pip(*arguments: str | Path, **variables: str) -> None:
    run(sys.executable, "-m", "pip", "--quiet", *arguments, **variables)


def run(*command: str | Path, **variables: str) -> str:
    """Run a program of another environment, with further variables; return its output."""
    done = subprocess.run(
        command,
        env={**clean_environment(), **variables},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
