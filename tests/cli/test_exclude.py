"""`--exclude` of `samserve automask` and `annotate`, and the prompts of `annotate`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import sample_images
from tests.cli.conftest import FAKE, Command

FEW = (*FAKE, "--points-per-side", "3", "--pred-iou-thresh", "0", "--stability-score-thresh", "0")
BEST = (*FEW, "--max-masks", "2")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, seed in (("a.png", 1), ("b.png", 2)):
        (folder / name).write_bytes(sample_images.png(48, 64, seed))
    return folder


def counts_of(record: Path) -> set[str]:
    value = json.loads(record.read_text())
    return {each["segmentation"]["counts"] for each in value["annotations"]}


def test_automask_leaves_out_the_masks_of_its_own_record(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    image = photos / "a.png"
    samserve("automask", image, *BEST, "--json", first)
    result = samserve("automask", image, *BEST, "--json", second, "--exclude", first)
    whole = {"id": 1, "image_id": 5, "segmentation": [[0, 0, 64, 0, 64, 48, 0, 48]]}
    value = {"images": [{"id": 5, "file_name": "x.png", "width": 64, "height": 48}]}
    file = tmp_path / "whole.json"
    file.write_text(json.dumps({**value, "annotations": [whole]}))
    nothing = samserve("automask", image, *FEW, "--exclude", file, "--exclude-parts")

    assert (result.code, nothing.code) == (0, 0)
    assert len(counts_of(first)) == 2
    assert counts_of(second)
    assert not counts_of(first) & counts_of(second)
    assert ", exclude " in result.err
    assert "raise --exclude-iou-thresh, or omit --exclude-parts" in nothing.err


def test_annotate_proposes_what_a_data_set_lacks(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    samserve("annotate", photos, "--out", first, *BEST)
    # As the COCO file of the run, and as its records.
    result = samserve("annotate", photos, "--out", second, *FEW, "--exclude", first)
    again = samserve(
        "annotate", photos, "--out", second, *FEW, "--exclude", first / "annotations.json"
    )

    before = counts_of(first / "records" / "a.png.json")
    same = samserve("annotate", photos, "--out", first, *FEW, "--exclude", first / "records")

    assert (result.code, again.code, same.code) == (0, 0, 2)
    assert "--exclude is the output of this run" in same.err
    assert counts_of(first / "records" / "a.png.json") == before
    assert "excluding masks: 4, of images: 2" in result.err
    for name in ("a.png.json", "b.png.json"):
        proposed = counts_of(second / "records" / name)
        assert proposed
        assert not proposed & counts_of(first / "records" / name)
    assert "unchanged: 2" in again.out


def detections(folder: Path) -> Path:
    file = folder / "detections.json"
    size = {"width": 64, "height": 48}
    value: dict[str, Any] = {
        "images": [
            {"id": 5, "file_name": "a.png", **size},
            {"id": 6, "file_name": "z.png", **size},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 7, "bbox": [5, 5, 30, 30], "score": 0.5},
            {"id": 2, "image_id": 5, "category_id": 7, "bbox": [20, 9, 90, 20], "score": 0.25},
        ],
        "categories": [{"id": 7, "name": "bird"}],
    }
    file.write_text(json.dumps(value))
    return file


def test_annotate_takes_the_boxes_of_a_detector(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = samserve("annotate", photos, "--out", out, *FAKE, "--boxes", detections(tmp_path))

    assert result.code == 0
    assert f"boxes: 2, in images: 1; 1 image of {tmp_path}" in result.err
    assert "hint:" not in result.err
    coco = json.loads((out / "annotations.json").read_text())
    assert [each["name"] for each in coco["categories"]] == ["bird"]
    assert [(each["category_id"], each["score"]) for each in coco["annotations"]] == [
        *((7, 0.5), (7, 0.25))
    ]
    assert len(coco["images"]) == 2


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--exclude-parts",), "--exclude-parts requires --exclude"),
        (("--exclude-iou-thresh", "0.5"), "--exclude-iou-thresh requires --exclude"),
        (("--image-list", "{file}"), "--image-list requires --boxes or --points"),
        (("--boxes", "{file}", "--points", "{file}"), "give one of them"),
        (("--boxes", "{file}", "--exclude", "{file}"), "--exclude is not available with --boxes"),
        (("--points", "{file}", "--tile", "512"), "--tile is not available with --points"),
        (("--exclude", "{file}", "--tile", "512"), "--exclude is not available with --tile"),
        (("--boxes", "{file}", "--max-masks", "3"), "--max-masks is an option of AutoMask"),
        (("--boxes", "gone.json"), "'gone.json' does not exist"),
    ],
)
def test_options_that_do_not_fit_are_usage_errors(
    options: tuple[str, ...], text: str, samserve: Command, photos: Path, tmp_path: Path
) -> None:
    file = str(detections(tmp_path))
    given = [each.format(file=file) for each in options]

    result = samserve("annotate", photos, "--out", tmp_path / "out", *FAKE, *given)

    assert result.code == 2
    assert text in " ".join(result.err.split())


def test_data_sets_that_are_not_valid_are_errors_before_a_server_starts(
    samserve: Command, photos: Path, tmp_path: Path
) -> None:
    file = detections(tmp_path)
    value = json.loads(file.read_text())
    value["annotations"][1]["bbox"] = [1, 2]
    file.write_text(json.dumps(value))
    broken = tmp_path / "broken.json"
    broken.write_text('{"image": ')

    boxes = samserve("annotate", photos, "--out", tmp_path / "out", *FAKE, "--boxes", file)
    known = samserve("annotate", photos, "--out", tmp_path / "out", *FAKE, "--exclude", broken)
    other = samserve("automask", photos / "a.png", *FAKE, "--exclude", broken)

    assert (boxes.code, known.code, other.code) == (1, 1, 1)
    assert "annotations[1] (id 2)" in boxes.err
    assert "--exclude: " in known.err
    assert "broken.json" in known.err
    assert "broken.json" in other.err
