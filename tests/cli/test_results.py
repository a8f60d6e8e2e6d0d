"""The output of commands that succeed."""

from __future__ import annotations

import json
import tomllib
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samserve.core import rle
from samserve.settings import load
from samserve.types import CocoRle, Size

from tests.cli.conftest import FAKE, Command


def test_predict_writes_a_record(samserve: Command, image: Path, tmp_path: Path) -> None:
    record = tmp_path / "out.json"

    result = samserve(
        *("predict", image, "--point", "30,20", "--multimask", "all", "--json", record, *FAKE)
    )

    written = json.loads(record.read_text())
    masks = written["results"][0]["masks"]
    assert result.code == 0
    assert set(written) == {
        *("file", "embedding_id", "image_size", "model", "results", "timings_ms"),
        *("converted_from", "error"),
    }
    assert (written["file"], written["error"]) == (str(image), None)
    assert (written["image_size"], written["model"]) == ([48, 64], "fake")
    assert written["results"][0]["object_score"] is None
    assert [mask["token_index"] for mask in masks] == [1, 2, 3]
    assert set(masks[0]) == {
        *("segmentation", "token_index", "predicted_iou", "stability_score", "area", "bbox")
    }
    assert set(masks[0]["segmentation"]) == {"size", "counts"}
    assert len(masks[0]["bbox"]) == 4


def test_predict_prints_a_line_per_mask(samserve: Command, image: Path) -> None:
    boxes = ("--box", "1,1,30,30", "--box", "20,20,60,40")

    result = samserve("predict", image, *boxes, *FAKE)

    lines = result.out.splitlines()
    assert [line.split()[0] for line in lines] == ["prompt=1", "prompt=2"]
    assert "predicted_iou=0." in lines[0]


def test_points_box_and_mask_form_one_prompt(
    samserve: Command, image: Path, tmp_path: Path
) -> None:
    mask = tmp_path / "mask.png"
    Image.fromarray(np.full((48, 64), 255, dtype=np.uint8)).save(mask)
    prompts = ("--point", "30,20", "--point", "5,5,0", "--box", "10,10,50,40", "--mask", mask)

    result = samserve("predict", image, *prompts, "--json", "-", *FAKE)

    assert len(json.loads(result.out)["results"]) == 1


def decoded(record: str) -> np.ndarray:
    segmentation = json.loads(record)["results"][0]["masks"][0]["segmentation"]
    return rle.decode(CocoRle(Size(*segmentation["size"]), segmentation["counts"]))


@pytest.mark.parametrize("kind", ["png", "npy", "logits"])
def test_a_mask_file_is_an_image_an_array_or_logits(
    samserve: Command, image: Path, tmp_path: Path, kind: str
) -> None:
    inside = np.zeros((48, 64), dtype=np.uint8)
    inside[10:30, 10:40] = 1
    path = tmp_path / f"mask.{'png' if kind == 'png' else 'npy'}"
    if kind == "png":
        Image.fromarray(inside).save(path)
    else:
        np.save(path, inside if kind == "npy" else np.full((256, 256), 9.0))

    result = samserve(
        *("predict", image, "--mask", path, "--multimask", "single", "--json", "-", *FAKE)
    )

    found = decoded(result.out)
    assert found[15:25, 15:35].all()
    assert found[40:, 50:].all() == (kind == "logits")


def test_automask_writes_an_sa1b_record(samserve: Command, image: Path, tmp_path: Path) -> None:
    record = tmp_path / "out.json"

    result = samserve("automask", image, "--points-per-side", "4", "--json", record, *FAKE)

    written = json.loads(record.read_text())
    annotations = written["annotations"]
    assert result.code == 0
    assert written["image"] == {
        "image_id": 0, "width": 64, "height": 48, "file_name": "image.png"
    }  # fmt: skip
    assert [each["id"] for each in annotations] == list(range(1, len(annotations) + 1))
    assert set(annotations[0]) == {
        *("id", "segmentation", "area", "bbox", "predicted_iou", "stability_score"),
        *("crop_box", "point_coords"),
    }
    assert len(result.out.splitlines()) == len(annotations)


@pytest.mark.parametrize(
    ("options", "points"),
    [
        (("--points-per-side", "3"), 9),
        (("--points-per-side", "3", "--crop-n-layers", "1"), 9 * 5),
        (("--point-grids", "GRIDS"), 2),
    ],
    ids=["grid", "crops", "own grid"],
)
def test_automask_options_are_applied(
    samserve: Command, image: Path, tmp_path: Path, options: tuple[str, ...], points: int
) -> None:
    grids = tmp_path / "grids.json"
    grids.write_text("[[[0.5, 0.5], [0.1, 0.9]]]")
    arguments = [str(grids) if option == "GRIDS" else option for option in options]

    result = samserve("automask", image, *arguments, *FAKE)

    assert f"pred_iou {points * 3} ->" in result.err


def test_every_option_of_the_reference_is_accepted(samserve: Command, image: Path) -> None:
    options = {
        "points-per-side": 4, "points-per-batch": 8, "pred-iou-thresh": 0.5,
        "stability-score-thresh": 0.1, "stability-score-offset": 0.5, "box-nms-thresh": 0.9,
        "crop-n-layers": 1, "crop-nms-thresh": 0.8, "crop-overlap-ratio": 0.2,
        "crop-n-points-downscale-factor": 2, "min-mask-region-area": 3, "max-masks": 2,
        "roi": "0,0,40,40",
    }  # fmt: skip
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    arguments += ["--use-m2m", "--no-multimask-output"]

    result = samserve("automask", image, *arguments, *FAKE)

    assert result.code == 0
    assert 0 < len(result.out.splitlines()) <= 2


def test_embed_prints_the_embedding(samserve: Command, image: Path) -> None:
    result = samserve("embed", image, *FAKE)

    printed = dict(line.split(": ", 1) for line in result.out.splitlines())
    assert len(printed["id"]) == 64
    assert (printed["image"], printed["model"], printed["cached"]) == ("64x48", "fake", "no")
    assert "encode_ms" in printed


def test_models_prints_a_table_or_json(samserve: Command) -> None:
    table = samserve("models", *FAKE)
    record = samserve("models", "--json", *FAKE)

    assert table.out.splitlines()[1].startswith("fake *")
    assert json.loads(record.out)["models"][0]["name"] == "fake"
    assert json.loads(record.out)["limits"]["max_prompts"] == 256


def test_config_prints_a_file_with_the_same_settings(samserve: Command, tmp_path: Path) -> None:
    printed = samserve("config", "--set", "cache.ttl_s=60", "--set", "server.host=::1").out
    file = tmp_path / "samserve.toml"
    file.write_text(printed)

    settings = load(file=file)

    assert (settings.cache.ttl_s, settings.server.host) == (60, "::1")
    assert tomllib.loads(printed)["server"]["port"] == 50051
    assert samserve("config", "--config", file).out == printed


def test_config_prints_json(samserve: Command) -> None:
    result = samserve("config", "--json", "--set", "engine.threads=3")

    assert json.loads(result.out)["engine"]["threads"] == 3


def test_doctor_prints_one_line_per_check(samserve: Command) -> None:
    free = ("--set", "server.port=0", "--set", "server.admin_port=0")

    result = samserve("doctor", *FAKE, *free)

    assert result.code == 0
    assert all(line.startswith("ok ") for line in result.out.splitlines())
    assert "inference: fake: Embed and Predict" in result.out


@pytest.mark.parametrize(("client", "code"), [("0.1.0", 0), ("0.2.0", 1)])
def test_doctor_reports_a_client_of_another_version(
    samserve: Command, monkeypatch: pytest.MonkeyPatch, client: str, code: int
) -> None:
    versions = {"samserve": "0.1.0", "samserve-client": client}
    actual = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: versions.get(name) or actual(name))

    result = samserve("doctor", *FAKE, "--set", "server.port=0", "--set", "server.admin_port=0")

    (line,) = (line for line in result.out.splitlines() if "samserve-client" in line)
    assert result.code == code
    assert line.startswith("problem" if code else "ok")
    assert client in line


def test_doctor_exits_with_one_if_a_check_fails(samserve: Command, tmp_path: Path) -> None:
    result = samserve("doctor", "--set", f"engine.model_repository={tmp_path}")

    assert result.code == 1
    assert f"problem  model repository: no model in {tmp_path}" in result.out


def test_version_is_printed(samserve: Command) -> None:
    assert samserve("--version").out.strip().count(".") == 2


@pytest.mark.parametrize(
    ("command", "named"), [((), "automask"), (("cache",), "warm"), (("keys",), "hash")]
)
def test_help_is_printed_without_a_command(
    samserve: Command, command: tuple[str, ...], named: str
) -> None:
    result = samserve(*command)

    assert result.code == 0
    assert named in result.out
