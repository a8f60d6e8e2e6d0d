"""What `samserve tune` refuses before it measures or trains anything, with a text of one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.cli.conftest import Command, Result
from tests.tuning import toys

Refused = Callable[..., Result]
MODEL = ("--model", "sam_tiny")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data set of four images, in a COCO file beside them."""
    return toys.write_coco(tmp_path / "data", 1, 4)


@pytest.fixture
def refused(samserve: Command, tmp_path: Path) -> Refused:
    """A function that runs a command, and checks that it has failed and written nothing."""
    models, run = tmp_path / "models", tmp_path / "run"

    def run_refused(*arguments: object, model: tuple[str, ...] = MODEL) -> Result:
        folders = () if "--out" in arguments else ("--out", models)
        # Short, if it is not refused.
        length = () if "--minutes" in arguments else ("--steps", 1)
        result = samserve("tune", *arguments, *model, *folders, "--run", run, *length)
        assert not list(models.glob("*"))
        assert not list(run.glob("*"))
        return result

    return run_refused


def _edit(data: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(data.read_text())
    change(content)
    data.write_text(json.dumps(content))


def _resized(data: Path) -> None:
    path = data.with_name("1-0.png")
    Image.open(path).resize((64, 64)).save(path)


UNSUITABLE: dict[str, tuple[Callable[[Path], object], str]] = {
    "too small": (
        lambda data: _edit(data, lambda content: content["annotations"].__delitem__(slice(6, 99))),
        "the training part is too small: 2 objects on 1 images, at least 8 are needed",
    ),
    "no objects": (
        lambda data: _edit(data, lambda content: content.update(annotations=[])),
        "there is no held-out part: 0 images of the data set have objects",
    ),
    "masks of another size": (
        _resized,
        "1-0.png: its masks are of 128x128 pixels, the image has 64x64",
    ),
    "missing image": (lambda data: data.with_name("1-2.png").unlink(), "images are missing in "),
    "damaged image": (
        lambda data: data.with_name("1-2.png").write_bytes(b"\x89PNG\r\n\x1a\n"),
        "1-2.png cannot be read as an image",
    ),
    "no data set": (lambda data: data.write_text("text"), "is not a data set that is known"),
    "no file": (lambda data: data.unlink(), "coco.json: does not exist"),
}


@pytest.mark.parametrize("case", list(UNSUITABLE))
def test_unsuitable_data_is_refused(refused: Refused, data: Path, case: str) -> None:
    damage, message = UNSUITABLE[case]
    damage(data)

    result = refused(data)

    assert result.code == 1
    assert message in result.error


def test_one_image_has_no_held_out_part(refused: Refused, tmp_path: Path) -> None:
    result = refused(toys.write_coco(tmp_path / "one", 1, 1))

    assert result.code == 1
    assert "there is no held-out part: 1 images of the data set have objects" in result.error


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--held-out", "0"), 1, "there is no held-out part"),
        (("--held-out", "1.5"), 1, "must be between 0 and 1, not 1.5"),
        (("--held-out", "nothing"), 2, "--held-out 'nothing': expected a part of the images"),
        (("--rate", "0"), 1, "the learning rate must be above 0 and at most 1, not 0"),
        (("--rate", "-1"), 1, "the learning rate must be above 0 and at most 1, not -1"),
        (("--rate", "2"), 1, "the learning rate must be above 0 and at most 1, not 2"),
        (("--rate", "nan"), 1, "the learning rate must be above 0 and at most 1, not nan"),
        (("--minutes", "inf"), 1, "the length of the run must be positive and finite"),
        (("--minutes", "nan"), 2, "--minutes"),
        (("--minutes", "1", "--steps", "1"), 2, "--steps and --minutes both set the length"),
        (("--device", "other"), 1, "the device must be one of cpu, cuda, not 'other'"),
        (("--name", "a/b"), 1, "model name 'a/b': expected at most 128 letters"),
        (("--checkpoint", "sam.pth"), 1, "'sam_tiny' are in its graph: omit --checkpoint"),
        (("--replay-ratio", "0.5"), 2, "--replay-ratio requires --replay"),
        (("--images", "nothing"), 2, "'nothing' does not exist"),
    ],
)
def test_unsuitable_option_is_refused(
    refused: Refused, data: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    result = refused(data, *arguments)

    assert result.code == code
    assert message in result.error


@pytest.mark.parametrize("ratio", ["1", "-0.1", "nan"])
def test_part_of_old_data_that_is_out_of_range_is_refused(
    refused: Refused, data: Path, tmp_path: Path, ratio: str
) -> None:
    old = toys.write_coco(tmp_path / "old", 2, 10)

    result = refused(data, "--replay", old, "--replay-ratio", ratio)

    assert result.code == 1
    assert "the part of the images from old data must be at least 0 and below 1" in result.error


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (1, "there is no held-out part: 1 images of the old data have objects"),
        (2, "the training part of the old data is too small: 4 objects on 1 images"),
    ],
)
def test_old_data_that_is_too_small_is_refused(
    refused: Refused, data: Path, tmp_path: Path, images: int, message: str
) -> None:
    result = refused(data, "--replay", toys.write_coco(tmp_path / "old", 2, images))

    assert result.code == 1
    assert message in result.error


@pytest.mark.parametrize("old_is_trained", [False, True])
def test_held_out_images_that_are_trained_on_are_refused(
    refused: Refused, data: Path, tmp_path: Path, old_is_trained: bool
) -> None:
    other = toys.write_coco(tmp_path / "other", 2, 5)
    trained = (other, "--held-out", data) if old_is_trained else (data, "--held-out", other)

    result = refused(*trained, "--replay", other)

    part = "the held-out part of the old data" if old_is_trained else "the held-out part"
    assert result.code == 1
    assert f"images of {part} are also among those that are trained on" in result.error


def test_a_device_that_is_not_available_is_refused(
    refused: Refused, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    result = refused(data, "--device", "cuda")

    assert result.code == 1
    assert "the device cuda is not available" in result.error


@pytest.mark.parametrize("role", ["encoder", "decoder"])
def test_an_existing_model_is_not_overwritten(
    samserve: Command, data: Path, tmp_path: Path, role: str
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    existing = models / f"known_{role}" / "config.pbtxt"
    existing.parent.mkdir(parents=True)
    existing.write_text("known")

    result = samserve(
        *("tune", data, *MODEL, "--out", models, "--run", run, "--name", "known", "--steps", "1")
    )

    assert result.code == 1
    assert f"{models} has a model 'known' already" in result.error
    assert [path for path in models.rglob("*") if path.is_file()] == [existing]
    assert existing.read_text() == "known"
    assert not run.exists()


def test_folder_that_cannot_be_written_is_refused(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    out = data / "models"  # below a file

    result = refused(data, "--out", out)

    assert result.code == 1
    assert f"cannot write to {out}: Not a directory" in result.error


def test_model_that_cannot_be_served_is_refused_with_the_reason(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    known = tmp_path / "known"
    for role in ("encoder", "decoder"):
        shutil.copytree(toys.SAM_TINY / f"sam_tiny_{role}", known / f"sam_tiny_{role}")
    (known / "sam_tiny_decoder" / "1" / "model.onnx").unlink()

    result = refused(data, "--models", known)

    assert result.code == 1
    assert "model.onnx" in result.error


def test_images_of_another_data_set_may_be_in_the_same_folder(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    moved = data.rename(tmp_path / "moved.json")
    other = toys.write_coco(tmp_path / "data", 2, 1).rename(tmp_path / "other.json")
    images = ("--images", tmp_path / "data")

    result = refused(moved, "--held-out", other, *images, "--out", moved / "models")

    # The last check of all: the others have passed.
    assert "cannot write to" in result.error


@pytest.mark.slow
def test_a_model_that_is_worse_is_not_written(
    samserve: Command, data: Path, tmp_path: Path
) -> None:
    models, run = tmp_path / "models", tmp_path / "run"
    short = ("--steps", "1", "--prompts", "2", "--images-per-step", "1", "--rate", "0.5")

    result = samserve("tune", data, *MODEL, "--out", models, "--run", run, *short)

    assert result.code == 3
    assert result.out == ""
    last = result.err.splitlines()[-1]
    assert last.startswith("samserve: error: the tuned model is not better and was not written: ")
    assert list(models.iterdir()) == []
    promoted = samserve("models", "promote", "sam_tiny", models, "--repository", toys.SAM_TINY)
    assert promoted.code == 1
