"""Label Studio's SDK, in its own environment, reads our tasks, and we read what it exports."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.core import run_lengths, scanlines
from samserve.datasets.formats import SegmentationKind, WriteOptions
from samserve.datasets.label_studio.reading import read
from samserve.datasets.label_studio.writing import write_folder
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Origin
from samserve.types import Size

from tests.datasets.tool_records import mask_of

pytestmark = pytest.mark.slow

PYTHON = Path(__file__).parents[3] / ".venv-label-studio-sdk" / "bin" / "python"
SIZE = Size(120, 160)
CATEGORIES = (Category(1, "disc"), Category(2, "ring & hole"))
LABELS = {each.id: each.name for each in CATEGORIES}

# Converts annotations that are our predictions, as an annotator accepts them.
SCRIPT = """
import json, sys
from pathlib import Path
from label_studio_sdk.converter import Converter
from label_studio_sdk.label_interface import LabelInterface
folder = Path(sys.argv[1])
config = (folder / "out" / "label_config.xml").read_text()
tasks = json.loads((folder / "out" / "tasks.json").read_text())
interface = LabelInterface(config)
errors = [
    error
    for task in tasks
    for each in task["predictions"]
    for error in interface.validate_prediction(each, return_errors=True)
]
for number, task in enumerate(tasks, 1):
    results = [{**each, "origin": "prediction"} for each in task["predictions"][0]["result"]]
    task["id"] = number
    task["annotations"] = [{"id": number, "result": results, "completed_by": 1}]
(folder / "export.json").write_text(json.dumps(tasks))
converter = Converter(config, str(folder), download_resources=False)
source = str(folder / "export.json")
converter.convert_to_json_min(source, str(folder / "min"), is_dir=False)
(folder / "png").mkdir()
converter.convert(source, str(folder / "png"), "BRUSH_TO_PNG", is_dir=False)
converter.convert(source, str(folder / "coco"), "COCO", is_dir=False)
json.dump(errors, sys.stdout)
"""


def masks() -> list[tuple[int, np.ndarray]]:
    """Return masks with their categories: a disc, a ring, two parts, all, one pixel, noise."""
    rows, columns = np.mgrid[: SIZE.height, : SIZE.width]
    disc = np.hypot(rows - 60, columns - 50) < 30
    ring = (np.hypot(rows - 60, columns - 100) < 40) & (np.hypot(rows - 60, columns - 100) > 15)
    parts = (np.hypot(rows - 20, columns - 20) < 12) | (np.hypot(rows - 95, columns - 130) < 14)
    pixel = np.zeros(disc.shape, bool)
    pixel[119, 159] = True
    noise = np.random.default_rng(3).random(disc.shape) < 0.3
    found = [disc, ring, parts, np.ones(disc.shape, bool), pixel, noise]
    return [(1 + index % 2, mask) for index, mask in enumerate(found)]


def converted(folder: Path, options: WriteOptions, chosen: Sequence[int]) -> list[str]:
    """Write masks, have the SDK convert them, and return what it finds wrong."""
    every = masks()
    annotations = tuple(
        Annotation(
            run_lengths.encode(mask),
            category_id=category,
            predicted_iou=1.01 - 0.1 * index,
            stability_score=0.9,
            point_coords=((1.5, 2.5),),
            id=index + 1,
        )
        for index in chosen
        for category, mask in [every[index]]
    )
    boxes = (Annotation(None, category_id=1, box=(10.0, 20.0, 40.0, 30.0), score=0.25, id=99),)
    images = [
        ImageRecord("a b/1.png", SIZE, annotations),
        ImageRecord("2.png", SIZE, boxes),
        ImageRecord("3.png", SIZE, ()),
    ]
    write_folder(DataSet(images, CATEGORIES), folder / "out", options)
    output = subprocess.check_output(
        [str(PYTHON), "-c", SCRIPT, str(folder)], text=True, timeout=300, cwd=folder
    )
    found: list[str] = json.loads(output)
    return found


def test_sdk_reads_the_same_pixels_and_we_read_its_exports(tmp_path: Path) -> None:
    every = masks()

    assert converted(tmp_path, WriteOptions(), range(len(every))) == []

    # As image files, one for each brush stroke of task 1.
    images = (tmp_path / "png").glob("*.png")
    found = [(path.name, pixels_in(path)) for path in images]
    assert len(found) == len(every)
    for category, mask in every:
        same = [name for name, each in found if np.array_equal(each, mask)]
        assert len(same) == 1
        assert LABELS[category] in same[0]

    # Exports in both forms are what we have written.
    complete = {each.file_name: each for each in read(tmp_path / "export.json").images}
    short = {each.file_name: each for each in read(tmp_path / "min" / "result.json").images}
    assert list(complete) == list(short) == ["a b/1.png", "2.png", "3.png"]
    full = {each.id: each for each in complete["a b/1.png"].annotations}
    for index, (category, mask) in enumerate(every):
        own = full[index + 1]
        np.testing.assert_array_equal(mask_of(own, SIZE), mask)
        assert own.category_id == category
        assert own.origin is Origin.ACCEPTED
        assert (own.predicted_iou, own.stability_score) == (1.01 - 0.1 * index, 0.9)
        assert own.point_coords == ((1.5, 2.5),)
    pixels = [mask_of(each, SIZE) for each in short["a b/1.png"].annotations]
    for _, mask in every:
        assert sum(np.array_equal(each, mask) for each in pixels) == 1
    for images_of in (complete, short):
        (box,) = images_of["2.png"].annotations
        assert box.box == pytest.approx((10, 20, 40, 30))
    assert all(each.origin is None for each in short["2.png"].annotations)


def test_sdk_reads_polygons_within_the_tolerance(tmp_path: Path) -> None:
    tolerance = 1.0
    options = WriteOptions(segmentation=SegmentationKind.POLYGONS, tolerance=tolerance)
    # Of one part without holes, as COCO has no other polygons.
    every = [masks()[0], masks()[3]]

    assert converted(tmp_path, options, [0, 3]) == []

    coco = json.loads((tmp_path / "coco" / "result.json").read_text())
    names = {each["id"]: each["name"] for each in coco["categories"]}
    found = [
        (names[each["category_id"]], corners(each["segmentation"]))
        for each in coco["annotations"]
        if each["segmentation"]
    ]
    assert len(found) == len(every)
    for category, mask in every:
        own = [ring for name, ring in found if name == LABELS[category]]
        assert max(iou(inside(ring), mask) for ring in own) > 0.97
    # What the SDK makes of them are our own corners.
    (image, *_) = read(tmp_path / "export.json").images
    rings = [np.array(ring) for each in image.annotations for ring in polygon_rings(each)]
    for _, ring in found:
        assert any(len(each) == len(ring) and np.allclose(each, ring) for each in rings)


def pixels_in(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        values = np.asarray(image)
    assert set(np.unique(values)) <= {0, 255}
    return values > 0


def corners(segmentation: Sequence[Sequence[float]]) -> np.ndarray:
    (ring,) = segmentation
    return np.array(ring).reshape(-1, 2)


def polygon_rings(annotation: Annotation) -> list[Any]:
    return [ring for part in getattr(annotation.segmentation, "parts", ()) for ring in part]


def inside(ring: np.ndarray) -> np.ndarray:
    return scanlines.pixels(scanlines.runs_inside([ring], SIZE), SIZE)


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float((first & second).sum() / (first | second).sum())
