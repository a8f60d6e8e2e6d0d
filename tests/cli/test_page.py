"""The commands of `docs/cli.md` run as they are written, with the default model on the server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import server_process

ROOT = Path(__file__).parents[2]
PHOTO = ROOT / "service" / "samserve" / "export" / "samples" / "coffee.jpg"


@pytest.mark.slow
def test_commands_of_the_page_run(tmp_path: Path) -> None:
    with Image.open(PHOTO) as photo:
        photo.save(tmp_path / "photo.tif")
        photo.save(tmp_path / "more.tif")
    (tmp_path / "photos" / "a").mkdir(parents=True)
    for name in ("photo.jpg", "photos/one.jpg", "photos/a/two.jpg"):
        shutil.copy(PHOTO, tmp_path / name)
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    blocks = re.findall(r"(?ms)^```sh\n(.*?)^```", text)

    with server_process("--set", "engine.kind=onnx") as served:
        for block in blocks:
            run(block.replace("127.0.0.1:50051", served.address), tmp_path)

    assert {path.name for path in tmp_path.glob("step1*")} == {
        *("step1-1-1.npy", "step1-1-2.npy", "step1-1-3.npy")
    }
    with Image.open(tmp_path / "overlay.png") as overlay:
        assert overlay.width == 1280
    records = (tmp_path / "masks.json").read_text().splitlines()
    assert len(records) == len(list((tmp_path / "masks").iterdir())) == 2
    assert [json.loads(line)["error"] for line in records] == [None, None]
    with Image.open(tmp_path / "mask.png") as mask:
        refined = np.asarray(mask)
    assert refined[240, 320]
    assert not refined[350, 200]
    assert np.load(tmp_path / "step2.npy").shape == (256, 256)


def run(script: str, folder: Path) -> None:
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(folder),
        # For commands without --server; it is the commands that are tested.
        "SAMSERVE_ENGINE__KIND": "fake",
    }
    process = subprocess.run(
        [shutil.which("bash") or "bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, f"{script}\n{process.stderr}"
