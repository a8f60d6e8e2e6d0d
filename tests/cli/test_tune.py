"""`samserve tune` on the command line; what it does is tested in `tests/tuning`."""

from __future__ import annotations

from pathlib import Path

import pytest
from samserve.cli import tune
from samserve.cli.tune import NotBetterError
from samserve.tuning.errors import NotBetter, TuningError
from samserve.tuning.examples import Example

from tests.cli.conftest import Command
from tests.tuning import toys


@pytest.fixture
def four_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of four images; how formats are read is tested in their package."""
    folder = tmp_path / "data"
    examples = toys.discs(folder, 1, 4)

    def read(_path: Path, _images: Path | None) -> tuple[Example, ...]:
        return examples

    monkeypatch.setattr(tune, "_read", read)
    return folder


def test_unknown_model_is_named(samserve: Command, four_images: Path, tmp_path: Path) -> None:
    result = samserve("tune", four_images, "--model", "other", "--out", tmp_path / "models")

    assert result.code == 2
    assert "there is no model 'other'; available: " in result.err
    assert "sam_tiny" in result.err


@pytest.mark.parametrize("held_out", ["0", "1"])
def test_no_held_out_part_is_refused(
    samserve: Command, four_images: Path, tmp_path: Path, held_out: str
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"

    result = samserve(
        *("tune", four_images, "--model", "sam_tiny", "--out", models),
        *("--held-out", held_out, "--run", run),
    )

    assert result.code == 1
    assert "there is no held-out part" in result.err
    assert not models.exists()
    assert not run.exists()


def test_a_model_that_is_not_better_has_an_exit_code_of_its_own() -> None:
    with pytest.raises(NotBetterError) as raised, tune._errors():
        raise NotBetter("not better")
    assert raised.value.exit_code == 3

    with pytest.raises(tune.CommandError) as other, tune._errors():
        raise TuningError("too small")
    assert other.value.exit_code == 1
