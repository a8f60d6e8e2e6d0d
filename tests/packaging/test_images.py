"""The Dockerfile: linted, and its steps run here, in folders instead of layers.

No image is built: that takes a container runtime.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from tests import photos
from tests.chart.rendered import container, only, render
from tests.oracle.sam import TINY, original

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "service" / "Dockerfile"
CONSTRAINTS = ROOT / "service" / "constraints.txt"


@dataclass
class Stage:
    """A stage of the Dockerfile: what it begins with, and its steps as instruction and rest."""

    base: str
    steps: list[tuple[str, str]] = field(default_factory=list)


def stages() -> dict[str, Stage]:
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


class Builder:
    """Runs the steps of stages under a folder; `pip` takes what this machine is told to take."""

    def __init__(self, folder: Path) -> None:
        self.root = folder
        self._here = folder

    @property
    def program(self) -> Path:
        return self.root / "opt" / "samserve"

    def build(self, name: str) -> None:
        stage = stages()[name]
        if stage.base in stages():
            self.build(stage.base)
        for instruction, rest in stage.steps:
            match instruction:
                case "WORKDIR":
                    self._here = self.root / rest.lstrip("/")
                    self._here.mkdir(parents=True)
                case "COPY":
                    self._copy(*rest.split())
                case "RUN":
                    self._run(rest)
                case "ARG":
                    assert rest.startswith("PIP_FLAGS=")
                case _:
                    raise AssertionError(f"{instruction} is not known here")

    def _copy(self, *names: str) -> None:
        *sources, target = names
        for source in sources:
            if (ROOT / source).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, self._here / target, ignore=ignored)
            else:
                shutil.copy(ROOT / source, self._here / target)

    def _run(self, command: str) -> None:
        (self.root / "opt").mkdir(exist_ok=True)
        here = command.replace("/opt/samserve", str(self.program))
        here = re.sub(r"^python ", f"{sys.executable} ", here)
        environment = {**os.environ, "PIP_FLAGS": "", "PIP_QUIET": "1"}
        environment.pop("PYTHONPATH", None)
        done = subprocess.run(
            ["sh", "-ec", here],
            cwd=self._here,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


def in_image(builder: Builder, *command: str, cwd: Path) -> str:
    """Run a command with the environment of the image."""
    environment = {"PATH": f"{builder.program / 'bin'}:/usr/bin:/bin", "HOME": str(cwd)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def pins() -> dict[str, str]:
    lines = (line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#"))
    return {name: version for name, _, version in (line.partition("==") for line in lines)}


def packages(builder: Builder, folder: Path) -> dict[str, str]:
    listed = in_image(builder, "python", "-m", "pip", "list", "--format=json", cwd=folder)
    found = {each["name"].lower().replace("_", "-"): each["version"] for each in json.loads(listed)}
    return {name: version.partition("+")[0] for name, version in found.items()}


def test_the_linter_is_content() -> None:
    hadolint = Path(sys.executable).parent / "hadolint"

    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stdout) == (0, "")


def test_images_are_what_the_chart_takes_them_for() -> None:
    found = stages()
    pod = only(render(), "Deployment")["spec"]["template"]["spec"]
    ports = {port["containerPort"] for port in container(render(), "gateway")["ports"]}
    runtime = dict(found["runtime"].steps)

    # The last stage is what is built by default.
    assert list(found)[-1] == "gateway"
    assert "export" in found
    assert found["gateway"].base == found["export"].base == "runtime"
    user, group = runtime["USER"].split(":")
    assert pod["securityContext"]["runAsUser"] == int(user)
    assert pod["securityContext"]["runAsGroup"] == int(group)
    assert json.loads(runtime["CMD"]) == container(render(), "gateway")["command"]
    assert set(dict(found["gateway"].steps)["EXPOSE"].split()) == {str(port) for port in ports}


def test_no_pin_names_a_place() -> None:
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", f"{n}=={v}") for n, v in pins().items())
    assert {"grpcio", "onnxruntime", "torch"} <= pins().keys()


def test_what_is_ignored_is_not_what_is_copied() -> None:
    kept = {
        line.removeprefix("!")
        for line in (ROOT / "service" / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        name
        for instruction, rest in stages()["build"].steps
        if instruction == "COPY"
        for name in rest.split()[:-1]
    }

    assert kept == copied


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Builder:
    builder = Builder(tmp_path_factory.mktemp("image"))
    builder.build("build")
    return builder


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_gateways_image_serves_and_is_small(gateway: Builder, tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])

    said = in_image(
        gateway, "samserve", "predict", "photo.jpg", "--point=250,200", "--json=-", cwd=tmp_path
    )

    assert json.loads(said.splitlines()[-1])["model"] == "sam_tiny"
    installed = packages(gateway, tmp_path)
    assert installed.keys().isdisjoint({"torch", "onnx", "transformers"})
    used = sum(path.lstat().st_size for path in gateway.program.rglob("*") if path.is_file())
    assert used < 600 << 20


@pytest.mark.slow
def test_the_chart_finds_the_default_model_in_it(gateway: Builder) -> None:
    command = container(render(), "copy-models")["command"]
    assert command[2] == "/opt/samserve/models/."
    models = gateway.program / "models"
    assert sorted(path.name for path in models.iterdir()) == [
        "sam_tiny_decoder",
        "sam_tiny_encoder",
    ]
    assert (models / "sam_tiny_encoder" / "config.pbtxt").is_file()


@pytest.mark.slow
def test_everything_in_it_is_pinned(gateway: Builder, tmp_path: Path) -> None:
    installed = packages(gateway, tmp_path)

    for name in ("samserve", "pip", "setuptools"):
        installed.pop(name, None)
    assert installed.items() <= pins().items()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_exporters_image_exports_and_serves(tmp_path: Path) -> None:
    """What the extra names is enough, and the pictures that masks are compared on are there."""
    builder = Builder(tmp_path)
    builder.build("build-export")
    torch.manual_seed(0)
    torch.save(original(TINY).state_dict(), tmp_path / "small.pth")
    (tmp_path / "photo.jpg").write_bytes(photos.files()[0])

    def samserve(*arguments: str) -> str:
        return in_image(builder, "samserve", *arguments, cwd=tmp_path)

    told = samserve("export", "small.pth", "--repository", "models")
    served = ("--set", "engine.model_repository=models", "--json", "-")
    answer = samserve("predict", "photo.jpg", "--point", "250,200", *served)

    assert packages(builder, tmp_path)["torch"] == pins()["torch"]
    assert "75 prompts on 3 pictures" in told
    assert json.loads(answer.splitlines()[-1])["model"] == "small"
    assert "sam_vit_h" in samserve("models", "known")
