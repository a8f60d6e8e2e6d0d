"""The wheel alone, in an empty environment elsewhere, serves and predicts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests import photos

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + (done.stderr if code else "")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and install it into a new virtual environment; gives its bin folder."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("samserve-*.whl")
    assert wheel.stat().st_size < 20 << 20
    environment = folder / "environment"
    venv.create(environment, with_pip=True)
    run(environment / "bin" / "pip", "install", "--quiet", wheel, cwd=folder)
    return environment / "bin"


def test_an_installed_wheel_predicts_with_its_own_model(installed: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(photos.files()[0])
    arguments = ("--point", "250,200", "--out", "overlay.png", "--json", "answer.json")

    run(installed / "samserve", "predict", photo, *arguments, cwd=tmp_path)

    answer = json.loads((tmp_path / "answer.json").read_text())
    assert (answer["model"], answer["image_size"]) == ("sam_tiny", [512, 512])
    assert answer["results"][0]["masks"][0]["area"] > 0
    assert (tmp_path / "overlay.png").stat().st_size > 10_000


def test_an_installed_wheel_carries_no_training_framework(installed: Path, tmp_path: Path) -> None:
    listed = run(installed / "pip", "list", "--format", "json", cwd=tmp_path)

    names = {package["name"].lower() for package in json.loads(listed)}

    assert names.isdisjoint({"torch", "onnx", "transformers", "scikit-image"})
    assert "samserve" in names


@pytest.mark.parametrize("command", ["export small.pth", "models pull mobile_sam"])
def test_what_needs_the_extra_names_it(installed: Path, tmp_path: Path, command: str) -> None:
    arguments = (*command.split(), "--repository", "models")

    told = run(installed / "samserve", *arguments, cwd=tmp_path, code=1)

    assert told.count("\n") == 1
    assert "pip install 'samserve[export]'" in told
