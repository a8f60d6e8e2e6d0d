"""The recipe runs, can be resumed, and learns."""

from __future__ import annotations

import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from training import schedule
from training.evaluate import means
from training.iou_fit import IouFit
from training.model import SamTiny, load_model
from training.runtime import OnnxPair
from training.schedule import Schedule, Shape
from training.scoring import measure
from training.train import Plan, Trainer


@pytest.fixture
def small_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "EARLY", ((1.0, Shape(1, 4, 128)),))
    monkeypatch.setattr(schedule, "EARLY_STEPS", 2)
    monkeypatch.setattr(schedule, "STATIONARY", ((1.0, Shape(1, 4, 128, 0.5, True)),))
    monkeypatch.setattr(schedule, "FINAL", ((1.0, Shape(1, 4, 192)),))
    monkeypatch.setattr(schedule, "IOU_FIT", ((1.0, Shape(1, 4, 128)),))


@pytest.mark.usefixtures("small_shapes")
def test_resumed_run_matches_an_uninterrupted_one(tmp_path: Path) -> None:
    plan = Plan(Schedule(6, 1), workers=0)
    whole = Trainer(plan, tmp_path)
    whole.train()
    assert (tmp_path / "stationary.pt").is_file()
    resumed = Trainer(plan, tmp_path)
    resumed.resume(tmp_path / "stationary.pt")
    assert 0 < resumed.step < 6
    resumed.train()
    for name, value in whole.average.state_dict().items():
        assert torch.equal(value, resumed.average.state_dict()[name]), name


@pytest.mark.usefixtures("small_shapes")
def test_another_seed_gives_another_model(tmp_path: Path) -> None:
    models = []
    for seed in (1, 2):
        trainer = Trainer(Plan(Schedule(2, seed), workers=0), tmp_path)
        trainer.train()
        models.append(trainer.model.state_dict())
    assert any(not torch.equal(value, models[1][name]) for name, value in models[0].items())


@pytest.mark.usefixtures("small_shapes")
def test_iou_fit_changes_only_the_predicted_iou(tmp_path: Path) -> None:
    plan = Schedule(20, 1)
    torch.manual_seed(0)
    trained = SamTiny().eval()
    fit = IouFit(trained, plan)
    before = copy.deepcopy(fit.model.state_dict())
    fit.run(workers=0)
    fit.save(tmp_path / "final.pt")
    fitted = load_model(tmp_path / "final.pt").state_dict()
    for name, value in trained.state_dict().items():
        if not name.startswith("decoder.iou_head."):
            assert torch.equal(value, fitted[name]), name
    heads = [name for name in fitted if name.startswith("decoder.iou_head.")]
    assert all(not torch.equal(before[name], fitted[name]) for name in heads)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_short_training_learns_and_can_be_exported_and_evaluated(tmp_path: Path) -> None:
    """Run the commands of `training/README.md` with few steps."""
    output = _run("training.train", "--out", tmp_path, "--steps", 100)
    best = [float(value) for value in re.findall(r"first best ([0-9.]+)", output)]
    assert len(best) == 2
    assert best[0] < 0.25 < best[1]
    repository = tmp_path / "repository"
    _run("training.export", tmp_path / "final.pt", "--repository", repository)
    report = tmp_path / "report"
    printed = _run("training.evaluate", repository, "--out", report, "--scenes", 2, "--images")
    assert (report / "report.json").is_file()
    assert {path.name for path in report.glob("*.jpg")} == {"best.jpg", "worst.jpg", "typical.jpg"}
    assert (report / "coins.png").is_file()
    assert "coins found of 24" in printed


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_few_steps_give_graphs_that_can_be_evaluated(tmp_path: Path) -> None:
    """Run the same, too short to learn anything."""
    _run("training.train", "--out", tmp_path, "--steps", 2)
    repository = tmp_path / "repository"
    _run("training.export", tmp_path / "final.pt", "--repository", repository)
    encoder, decoder = (
        repository / f"sam_tiny_{part}" / "1" / "model.onnx" for part in ("encoder", "decoder")
    )

    figures = means(measure(OnnxPair(encoder, decoder, threads=1), 1, 2))

    assert 0 <= figures["one point centre, best of three"] < 0.5
    assert (repository / "sam_tiny_encoder" / "config.pbtxt").is_file()


def _run(module: str, *arguments: object) -> str:
    """Run a command in one thread: several would wait for each other on a loaded machine."""
    command = ["env", "OMP_NUM_THREADS=1", sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1000)
    assert done.returncode == 0, done.stderr
    return done.stdout
