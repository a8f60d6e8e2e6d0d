"""From a name to masks with the commands of the README: pull, serve, predict; real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import sample_images
from tests.export.hub import COMMIT, Hub, running_hub
from tests.oracle import sam2
from tests.support.waiting import until_sync

CATALOG = """
["sam2.1_toy"]
hub = "owner/name"
license = "Apache-2.0"
page = "https://example.org/toy"
description = "A SAM 2.1 of 128 pixels with seeded weights"
"""


class User:
    """A user with an empty home directory, who uses one hub."""

    def __init__(self, home: Path, hub: Hub) -> None:
        self.home = home
        self.environment = {
            "PATH": os.defpath,
            "HOME": str(home),
            "HF_ENDPOINT": hub.server.address,
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "2",
        }

    def samserve(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        process = subprocess.run(
            [sys.executable, "-m", "samserve", *arguments],
            env=self.environment,
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
        )
        assert process.returncode == 0, process.stderr
        return process

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[str]:
        """Run `samserve serve` and yield its address."""
        free = ("--port", "0", "--admin-port", "0", "--set", "log.format=json")
        log = self.home / "serve.log"
        with log.open("w") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", "samserve", "serve", *free, *arguments],
                env=self.environment,
                cwd=self.home,
                stderr=file,
            )

        def serving() -> str:
            assert process.poll() is None, log.read_text()
            lines = log.read_text().splitlines()
            return next((line for line in lines if '"serving"' in line), "")

        try:
            yield json.loads(until_sync(serving, timeout_s=120))["address"]
        finally:
            process.terminate()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_model_of_the_hub_is_pulled_served_and_predicts_masks(tmp_path: Path) -> None:
    folder = sam2.save(sam2.model(), tmp_path / "published")
    home = tmp_path / "home"
    home.mkdir()
    (home / "catalog.toml").write_text(CATALOG)
    photo = sample_images.encode(sample_images.noise(120, 160), "JPEG")
    (home / "photo.jpg").write_bytes(photo)
    with running_hub() as hub:
        hub.publish({path.name: path.read_bytes() for path in folder.iterdir()})
        user = User(home, hub)
        # Masks of random weights are less robust against rounding than those of trained ones.
        pull = ("models", "pull", "sam2.1_toy", "--catalog", "catalog.toml", "--min-iou", "0.5")
        pulled = user.samserve(*pull)
    with user.serving("--model", "sam2.1_toy") as address:
        listed = json.loads(user.samserve("models", "--json", "--server", address).stdout)
        predict = ("predict", "photo.jpg", "--point", "80,60", "--multimask", "all")
        user.samserve(*predict, "--server", address, "--json", "masks.json")

    models = home / ".local" / "share" / "samserve" / "models"
    assert f"wrote {models / 'sam2.1_toy_encoder'}" in pulled.stdout
    (model,) = listed["models"]
    assert (model["name"], model["family"], model["default"]) == ("sam2.1_toy", "sam2", True)
    card = model["card"]
    assert (card["license"], card["source"]) == ("Apache-2.0", "owner/name")
    assert card["source_revision"] == COMMIT
    assert card["parity"]["images"] == 3
    assert json.loads((home / "masks.json").read_text())
