"""`samserve tune` on the command line; what it does is tested in `tests/tuning`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from samserve.cli import tune
from samserve.cli.main import main
from samserve.cli.tune import NotBetterError
from samserve.tuning.errors import NotBetter, TuningError
from samserve.tuning.examples import WEIGHTS

from tests.cli.conftest import Command
from tests.tuning import toys


@pytest.fixture
def four_images(tmp_path: Path) -> Path:
    """A data set of four images, in a COCO file beside them."""
    return toys.write_coco(tmp_path / "data", 1, 4)


def test_images_and_origins_are_read(four_images: Path) -> None:
    examples = tune._read(four_images, None)

    assert [example.path.name for example in examples] == [f"1-{index}.png" for index in range(4)]
    assert {target.weight for example in examples for target in example.targets} == {
        WEIGHTS["corrected"]
    }


def test_a_data_set_without_its_images_is_refused(
    samserve: Command, four_images: Path, tmp_path: Path
) -> None:
    moved = four_images.rename(tmp_path / "coco.json")

    result = samserve("tune", moved, "--model", "sam_tiny", "--out", tmp_path / "models")

    assert result.code == 1
    assert "does not say where its images are: name them with --images" in result.err


def test_unknown_model_is_named(samserve: Command, four_images: Path, tmp_path: Path) -> None:
    result = samserve("tune", four_images, "--model", "other", "--out", tmp_path / "models")

    assert result.code == 2
    assert "there is no model 'other'; available: " in result.err
    assert "sam_tiny" in result.err


def test_a_model_that_is_not_better_has_an_exit_code_of_its_own() -> None:
    with pytest.raises(NotBetterError) as raised, tune._errors():
        raise NotBetter("not better")
    assert raised.value.exit_code == 3

    with pytest.raises(tune.CommandError) as other, tune._errors():
        raise TuningError("too small")
    assert other.value.exit_code == 1


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_waiting_threads_of_torch_do_not_spin_unless_that_is_set(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str]
) -> None:
    variables = dict(given)
    monkeypatch.setattr("os.environ", variables)
    monkeypatch.setattr(sys, "argv", ["samserve", "tune", "--help"])

    assert main() == 0

    assert variables["OMP_WAIT_POLICY"] == given.get("OMP_WAIT_POLICY", "PASSIVE")
