"""Libraries that people train and evaluate with read our data sets."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
import supervision
from pycocotools import mask as mask_functions
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from samserve.core import rle, run_lengths
from samserve.datasets import coco, json_files, yolo
from samserve.datasets.formats import SegmentationKind, WriteOptions
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord
from samserve.types import BoolArray, CocoRle, Size

from tests.datasets.sets import disc, photo

SIZE = Size(60, 80)
CATEGORIES = (Category(1, "ring"), Category(2, "ring in parts"))
CENTRES = [(20, 20), (55, 40), (40, 15)]


def masks_of(number: int) -> list[BoolArray]:
    """Return three rings, of which the last has two parts."""
    made = [disc(SIZE, (x + number, y), 12 + number) for x, y in CENTRES]
    made[2][:, 38:42] = False
    return made


@pytest.fixture
def data(tmp_path: Path) -> DataSet:
    """Two images, with their files below ``images``."""
    records = []
    for number in range(2):
        name = f"photo {number}.jpg"
        photo(tmp_path / "images" / name, SIZE)
        records.append(
            ImageRecord(
                name,
                SIZE,
                tuple(
                    Annotation(rle.encode(mask), category_id=1 + index // 2, score=0.5)
                    for index, mask in enumerate(masks_of(number))
                ),
            )
        )
    return DataSet(records, CATEGORIES)


@pytest.mark.parametrize("kind", SegmentationKind)
def test_pycocotools_reads_and_evaluates(
    data: DataSet, kind: SegmentationKind, tmp_path: Path
) -> None:
    path = tmp_path / "annotations.json"
    coco.write(data, path, WriteOptions(kind))
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        # Results are run lengths, and change while they are loaded.
        keys = ("image_id", "category_id", "score")
        rows = [
            {**{key: each[key] for key in keys}, "segmentation": truth.annToRLE(each)}
            for each in truth.loadAnns(truth.getAnnIds())
        ]
        found = truth.loadRes(rows)
        scores = COCOeval(truth, found, "segm")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()

    # Average precision, at IoU 0.5, at 0.75, and of small objects; none is larger.
    assert scores.stats[:6].tolist() == [1.0, 1.0, 1.0, 1.0, -1.0, -1.0]
    for image_id in truth.getImgIds():
        annotations = truth.imgToAnns[image_id]
        for annotation, mask in zip(annotations, masks_of(image_id - 1), strict=True):
            packed = truth.annToRLE(annotation)
            text = packed["counts"]
            counts = text if isinstance(text, str) else text.decode()
            assert (run_lengths.decode(CocoRle(SIZE, counts)) == mask).all()
            assert annotation["area"] == mask.sum()
            assert annotation["bbox"] == list(mask_functions.toBbox(packed))


def test_supervision_reads_coco(data: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "annotations.json"
    coco.write(data, path, WriteOptions())

    read = supervision.DetectionDataset.from_coco(str(tmp_path / "images"), str(path))

    assert read.classes == ["ring", "ring in parts"]
    for number, (name, _, detections) in enumerate(read):
        assert Path(name).name == f"photo {number}.jpg"
        assert (np.asarray(detections.mask) == masks_of(number)).all()
        assert detections.class_id is not None
        assert detections.class_id.tolist() == [0, 0, 1]


def test_supervision_reads_yolo(data: DataSet, tmp_path: Path) -> None:
    out = tmp_path / "yolo"
    yolo.write(data, out, WriteOptions(images=tmp_path / "images"))

    read = supervision.DetectionDataset.from_yolo(
        str(out / "images"), str(out / "labels"), str(out / "data.yaml")
    )

    assert read.classes == ["ring", "ring in parts"]
    for number, (_, _, detections) in enumerate(read):
        for mask, expected in zip(np.asarray(detections.mask), masks_of(number), strict=True):
            # It fills every pixel that a line touches.
            assert (mask & expected).sum() >= 0.98 * expected.sum()
            assert (mask & expected).sum() / (mask | expected).sum() > 0.75


def test_results_of_a_detector_are_read_with_the_images_of_another_file(
    data: DataSet, tmp_path: Path
) -> None:
    path = tmp_path / "annotations.json"
    coco.write(data, path, WriteOptions())
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
    rows = [
        {"image_id": 2, "category_id": 1, "bbox": [3, 4, 10.5, 7], "score": 0.9},
        *(
            {**{key: each[key] for key in ("image_id", "category_id", "segmentation", "score")}}
            for each in truth.loadAnns(truth.getAnnIds(imgIds=1))
        ),
    ]
    results = tmp_path / "results.json"
    json_files.write(results, rows)

    first, second = coco.RESULTS.read(results, path).images

    assert [each.segmentation for each in first.annotations] == list(map(rle.encode, masks_of(0)))
    assert [(each.box, each.score) for each in second.annotations] == [((3, 4, 10.5, 7), 0.9)]
