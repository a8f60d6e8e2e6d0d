"""`samserve tune` killed by SIGKILL at random steps, and continued: it ends with the same model.

Checkpoints are written after each step, so that each kill loses at most one and may hit one that
is being written.
"""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from samserve.tuning.loop import LAST

from tests.support.waiting import until_sync
from tests.tuning import toys

STEPS = 10
RUN = """
import sys
import torch
from samserve.tuning import tuner
torch.set_num_threads(1)
tuner.SAVE_S = 0.0
from samserve.cli.main import main
from samserve.tuning import pipeline
# In a few steps, a model does not become better.
pipeline.shortcoming = lambda *figures: ""
sys.exit(main(sys.argv[1:]))
"""


@contextmanager
def _started(folder: Path, data: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Start a short run, which is killed at the end of the block."""
    short = ("--steps", str(STEPS), "--images-per-step", "1", "--prompts", "2")
    folders = ("--out", str(folder / "models"), "--run", str(folder / "run"))
    command = [sys.executable, "-c", RUN, "tune", str(data), "--model", "sam_tiny"]
    process = subprocess.Popen(
        [*command, *short, *folders, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _saved_step(folder: Path) -> int:
    checkpoint = folder / "run" / LAST
    return torch.load(checkpoint, weights_only=True)["step"] if checkpoint.exists() else 0


def _decoder(folder: Path) -> str:
    (graph,) = (folder / "models").glob("*_decoder/1/model.onnx")
    return hashlib.sha256(graph.read_bytes()).hexdigest()


@pytest.mark.slow
def test_run_that_was_killed_twice_ends_with_the_same_decoder(tmp_path: Path) -> None:
    data = toys.write_coco(tmp_path / "data", 1, 4)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    rng = random.Random()
    saved = [0]
    for _ in range(2):
        # Not at the moment of a checkpoint, but somewhere in one of the next steps.
        step, wait_s = saved[-1] + rng.randint(1, 2), rng.uniform(0, 0.3)
        print(f"killed {wait_s} s after step {step}")
        with _started(killed, data, "--resume"):
            until_sync(lambda step=step: _saved_step(killed) >= step, timeout_s=120, poll_s=0.05)
            time.sleep(wait_s)
        saved.append(_saved_step(killed))
    outputs = []
    for folder, arguments in ((whole, ()), (killed, ("--resume",))):
        with _started(folder, data, *arguments) as process:
            outputs.append((*process.communicate(timeout=240), process.returncode))

    print(saved, outputs)
    assert 0 < saved[1] < saved[2] < STEPS
    assert [code for _, _, code in outputs] == [0, 0]
    assert _decoder(killed) == _decoder(whole)
