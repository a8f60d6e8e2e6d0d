"""The stages of the Dockerfile; their steps run in directories instead of image layers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "service" / "Dockerfile"
CONSTRAINTS = ROOT / "service" / "constraints.txt"


@dataclass
class Stage:
    """A stage of the Dockerfile: its base, and its steps as (instruction, arguments)."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
    """Return the stages of the Dockerfile by name."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    found: dict[str, Stage] = {}
    current: Stage | None = None
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction == "FROM":
            base, _, name = rest.split()
            found[name] = current = Stage(base)
        elif instruction and current is not None:
            current.steps.append((instruction, rest))
    return found


def ignored_paths() -> set[Path]:
    """Return the paths below copied folders that .dockerignore excludes."""
    text = DOCKERFILE.with_name("Dockerfile.dockerignore").read_text()
    return {ROOT / line for line in text.splitlines() if not line.startswith(("#", "!", "*"))}


class Builder:
    """Runs the steps of stages in a directory; pip and npm use the configuration of this machine.

    *page* has run the stage of that name.
    """

    def __init__(self, folder: Path, page: Builder | None = None) -> None:
        self.root = folder
        self._here = folder
        self._page = page

    @property
    def program(self) -> Path:
        return self.root / "opt" / "samserve"

    def build(self, name: str) -> None:
        stage = stages()[name]
        path = os.environ["PATH"]
        if stage.base in stages():
            self.build(stage.base)
        elif stage.base.startswith("node:"):
            path = f"{ROOT / '.venv-node' / 'bin'}:{path}"
        for instruction, rest in stage.steps:
            match instruction:
                case "WORKDIR":
                    self._here = self.root / rest.lstrip("/")
                    self._here.mkdir(parents=True, exist_ok=True)
                case "COPY":
                    self._copy(*rest.split())
                case "RUN":
                    self._run(rest, path)
                case "ARG":
                    assert rest.startswith("PIP_FLAGS=")
                case _:
                    raise AssertionError(f"{instruction} is not supported")

    def _copy(self, *names: str) -> None:
        *sources, target = names
        context = ROOT
        if sources[0] == "--from=page":
            assert self._page is not None
            context, sources = self._page.root, [each.lstrip("/") for each in sources[1:]]
        ignored = ignored_paths()

        def skip(folder: str, names: list[str]) -> set[str]:
            return {each for each in names if Path(folder) / each in ignored} | {"__pycache__"}

        for source in sources:
            copy = self._here / target
            copy.parent.mkdir(parents=True, exist_ok=True)
            if (context / source).is_dir():
                shutil.copytree(context / source, copy, ignore=skip)
            else:
                shutil.copy(context / source, copy)

    def _run(self, command: str, path: str) -> None:
        (self.root / "opt").mkdir(exist_ok=True)
        local = command.replace("/opt/samserve", str(self.program))
        local = re.sub(r"^python ", f"{sys.executable} ", local)
        environment = {**os.environ, "PIP_FLAGS": "", "PIP_QUIET": "1", "PATH": path}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["sh", "-ec", local],
            cwd=self._here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def in_image(builder: Builder, *command: str, cwd: Path, code: int = 0) -> str:
    """Run a command with the image's environment; return its output, with stderr if it fails."""
    environment = {"PATH": f"{builder.program / 'bin'}:/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


def pins() -> dict[str, str]:
    lines = (line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def packages(builder: Builder, folder: Path) -> dict[str, str]:
    listed = in_image(builder, "python", "-m", "pip", "list", "--format=json", cwd=folder)
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
    return {name: version.partition("+")[0] for name, version in found.items()}
