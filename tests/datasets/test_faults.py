"""Each kind of fault, planted in a data set of each format, is found, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.core import rle
from samserve.datasets import objects, reading
from samserve.datasets.checking import Check, Problem
from samserve.types import Size

from tests.datasets.sets import disc, photo

SIZE = Size(30, 40)
Ring = list[tuple[float, float]]
GOOD: Ring = [(2, 2), (20, 2), (20, 20)]
OTHER: Ring = [(20, 5), (38, 5), (38, 25), (20, 25)]
EMPTY: Ring = [(1, 1), (1.2, 1), (1.2, 1.2)]
OUTSIDE: Ring = [(-5, 1), (10, 1), (10, 10)]


def sa1b_set(folder: Path, rings: list[Ring]) -> Path:
    """Write a record, of run lengths; a ring that is outside becomes a box."""
    discs = {id(GOOD): disc(SIZE, (12, 12), 6), id(OTHER): disc(SIZE, (29, 15), 8)}
    annotations: list[dict[str, Any]] = []
    for number, ring in enumerate(rings):
        mask = rle.encode(discs.get(id(ring), np.zeros((30, 40), bool)))
        value = {"id": number, "segmentation": objects.rle_object(mask)}
        box = {"id": number, "segmentation": None, "bbox": [-5, 1, 15, 9]}
        annotations.append(box if ring is OUTSIDE else value)
    image = {"image_id": 1, "file_name": "a.jpg", "width": 40, "height": 30, "license": "x"}
    # Named as published ones.
    (folder / "sa_1.json").write_text(json.dumps({"image": image, "annotations": annotations}))
    return folder


def coco_set(folder: Path, rings: list[Ring]) -> Path:
    """Write a COCO file as those of the COCO data set."""
    value = {
        "info": {"year": 2017, "url": "http://cocodataset.org"},
        "licenses": [{"id": 1, "name": "CC BY"}],
        "images": [{"id": 7, "file_name": "a.jpg", "width": 40, "height": 30, "license": 1}],
        "annotations": [
            {
                "id": number,
                "image_id": 7,
                "category_id": 1,
                "iscrowd": 0,
                "area": 9.5,
                "segmentation": [[part for corner in ring for part in corner]],
                "bbox": [2, 2, 9, 9],
                "keypoints": [3, 3, 2],
                "num_keypoints": 1,
            }
            for number, ring in enumerate(rings)
        ],
        "categories": [{"id": 1, "name": "person", "keypoints": ["nose"], "skeleton": []}],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(value))
    return path


def yolo_set(folder: Path, rings: list[Ring]) -> Path:
    """Write a YOLO folder around the images."""
    (folder / "data.yaml").write_text("train: images\nval: images\nnames: [person]\n")
    (folder / "labels").mkdir()
    lines = (
        # A box: corners that are farther outside are not valid.
        "0.1 0.1 4e-1 4E-01"
        if ring is OUTSIDE
        else " ".join(f"{x / 40:.6f} {y / 30:.6f}" for x, y in ring)
        for ring in rings
    )
    text = "".join(f"0 {line}\r\n" for line in lines)
    (folder / "labels" / "a.txt").write_text(f"\ufeff{text}", "utf-8", newline="")
    return folder


def label_studio_set(folder: Path, rings: list[Ring]) -> Path:
    """Write an export of Label Studio."""
    result = [
        {
            "id": f"r{number}",
            "type": "polygonlabels",
            "from_name": "p",
            "to_name": "image",
            "original_width": 40,
            "original_height": 30,
            "image_rotation": 0,
            "value": {
                "points": [[100 * x / 40, 100 * y / 30] for x, y in ring],
                "polygonlabels": ["person"],
            },
        }
        for number, ring in enumerate(rings)
    ]
    task = {"id": 3, "data": {"image": "/data/local-files/?d=a.jpg"}}
    path = folder / "export.json"
    path.write_text(json.dumps([{**task, "annotations": [{"id": 1, "result": result}]}]))
    return path


def cvat_set(folder: Path, rings: list[Ring]) -> Path:
    """Write an export of CVAT."""
    shapes = "".join(
        f'<polygon label="person" points="{";".join(f"{x},{y}" for x, y in ring)}"/>'
        for ring in rings
    )
    image = f'<image id="0" name="a.jpg" width="40" height="30">{shapes}</image>'
    path = folder / "annotations.xml"
    path.write_text(f"<annotations>{image}</annotations>")
    return path


FORMATS = [sa1b_set, coco_set, yolo_set, label_studio_set, cvat_set]
Write = Callable[[Path, list[Ring]], Path]


def problems(write: Write, folder: Path, rings: list[Ring]) -> list[Problem]:
    images = folder / "images"
    path = write(folder, rings)
    data = reading.open_dataset(path, images=None if write is yolo_set else images)
    found = list(Check(data, images).findings())
    for each in found:
        assert "a." in each.place or "b.jpg" in each.place
    return [each.problem for each in found]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    photo(tmp_path / "images" / "a.jpg", SIZE)
    return tmp_path


@pytest.mark.parametrize("write", FORMATS)
def test_nothing_is_found_in_a_clean_data_set(write: Write, folder: Path) -> None:
    assert problems(write, folder, [GOOD, OTHER]) == []


@pytest.mark.parametrize("write", FORMATS)
@pytest.mark.parametrize(
    ("ring", "problem"),
    [
        (EMPTY, Problem.EMPTY),
        (GOOD, Problem.DUPLICATE),
        (OUTSIDE, Problem.OUTSIDE),
    ],
)
def test_annotations_that_are_wrong_are_found(
    write: Write, folder: Path, ring: Ring, problem: Problem
) -> None:
    assert problems(write, folder, [GOOD, OTHER, ring]) == [problem]


@pytest.mark.parametrize("write", FORMATS)
def test_missing_images_are_found(write: Write, folder: Path) -> None:
    (folder / "images" / "a.jpg").rename(folder / "images" / "b.jpg")
    expected = [Problem.IMAGE_MISSING]
    # An image of a YOLO folder without labels has none.
    expected += [] if write is yolo_set else [Problem.RECORD_MISSING]
    assert problems(write, folder, [GOOD, OTHER]) == expected


@pytest.mark.parametrize("write", [each for each in FORMATS if each is not yolo_set])
def test_images_of_another_size_are_found(write: Write, folder: Path) -> None:
    photo(folder / "images" / "a.jpg", Size(31, 40))
    assert problems(write, folder, [GOOD, OTHER]) == [Problem.IMAGE_SIZE]
