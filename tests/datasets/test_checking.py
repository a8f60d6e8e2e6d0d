"""What `Check` finds in data sets, and what it does not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samserve.core import rle
from samserve.datasets import reading, sa1b
from samserve.datasets.checking import Check, Finding, Problem
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Polygons
from samserve.types import Size

from tests.datasets.sets import disc, photo

SIZE = Size(30, 40)
DISC = rle.encode(disc(SIZE, (15, 15), 9))
OTHER = rle.encode(disc(SIZE, (25, 12), 6))
GOOD = ImageRecord(
    "a.jpg",
    SIZE,
    (Annotation(DISC, id=1, category_id=1), Annotation(OTHER, id=2, category_id=2)),
    image_id=5,
)
CATEGORIES = (Category(1, "cat"), Category(2, "dog"))


def changed(number: int = 1, **values: object) -> ImageRecord:
    """Return the good record with another value of an annotation."""
    annotations = list(GOOD.annotations)
    annotations[number] = replace(annotations[number], **values)  # type: ignore[arg-type]
    return replace(GOOD, annotations=tuple(annotations))


def box(*values: float) -> ImageRecord:
    return changed(segmentation=None, box=values)


def ring(*corners: tuple[float, float]) -> ImageRecord:
    return changed(segmentation=Polygons(((corners,),)))


OTHER_IMAGE = replace(GOOD, file_name="b.jpg", image_id=6, annotations=())
CASES: list[tuple[list[ImageRecord], list[tuple[Problem, str, str]]]] = [
    ([GOOD, OTHER_IMAGE], []),
    ([box(0, 0, 40, 30)], []),
    ([box(-0.4, 0, 40.4, 30.5)], []),
    ([ring((0, 0), (40, 0), (40, 30))], []),
    ([changed(category_id=None)], []),
    ([box(-1, 0, 5, 5)], [(Problem.OUTSIDE, "2", "its box -1, 0, 5, 5 is not inside of 40x30")]),
    ([box(0, 0, 41, 5)], [(Problem.OUTSIDE, "2", "not inside")]),
    ([box(0, 3, 40, 30)], [(Problem.OUTSIDE, "2", "not inside")]),
    ([ring((0, -2), (9, 9), (3, 9))], [(Problem.OUTSIDE, "2", "not inside")]),
    ([box(3, 3, 0, 5)], [(Problem.EMPTY, "2", "its box is 0 wide and 5 high")]),
    ([changed(segmentation=None)], [(Problem.EMPTY, "2", "has neither pixels nor a box")]),
    (
        [changed(segmentation=rle.encode(np.zeros((30, 40), bool)))],
        [(Problem.EMPTY, "2", "its mask has no pixels")],
    ),
    ([ring((1, 1), (1.2, 1), (1.2, 1.2))], [(Problem.EMPTY, "2", "its mask has no pixels")]),
    (
        [changed(segmentation=DISC)],
        [(Problem.DUPLICATE, "2", "its mask has the pixels of annotation 1")],
    ),
    (
        [replace(GOOD, annotations=(Annotation(None, box=(1, 2, 3, 4), category_id=1),) * 2)],
        [(Problem.DUPLICATE, "#2", "has the box and the category of annotation #1")],
    ),
    ([changed(id=1)], [(Problem.ID_TWICE, "1", "the annotation id 1 is used twice")]),
    ([changed(id=None, segmentation=DISC)], [(Problem.DUPLICATE, "#2", "of annotation 1")]),
    ([changed(category_id=3)], [(Problem.CATEGORY, "2", "is of the category 3")]),
    (
        [changed(segmentation=rle.encode(disc(Size(40, 30), (15, 15), 9)))],
        [(Problem.INVALID, "2", "is of 30x40 pixels, the image has 40x30")],
    ),
    (
        [GOOD, replace(OTHER_IMAGE, image_id=5)],
        [(Problem.ID_TWICE, "", "the image id 5 is that of a.jpg, too")],
    ),
    (
        [GOOD, replace(GOOD, annotations=())],
        [(Problem.NAME_TWICE, "", "has another record, too")],
    ),
]


@pytest.mark.parametrize(("records", "expected"), CASES)
def test_findings(records: list[ImageRecord], expected: list[tuple[Problem, str, str]]) -> None:
    check = Check(DataSet(records, CATEGORIES))
    found = list(check.findings())

    assert [(each.problem, each.annotation) for each in found] == [each[:2] for each in expected]
    for finding, (_, _, text) in zip(found, expected, strict=True):
        assert text in finding.text
        assert finding.place == records[-1].file_name
    assert (check.images, check.annotations) == (
        len(records),
        sum(len(record.annotations) for record in records),
    )


def test_categories_of_one_name_are_found() -> None:
    categories = (*CATEGORIES, Category(7, "cat"))

    (finding,) = Check(DataSet([GOOD], categories)).findings()

    assert finding == Finding(
        Problem.CATEGORY_TWICE, "categories", "1 and 7 have the same name 'cat'"
    )


@pytest.fixture
def images(tmp_path: Path) -> Path:
    photo(tmp_path / "images" / "a.jpg", SIZE)
    return tmp_path / "images"


def of_images(record: ImageRecord, images: Path) -> list[Finding]:
    return list(Check(DataSet([record], CATEGORIES), images).findings())


def test_images_are_compared_with_their_records(images: Path) -> None:
    assert of_images(GOOD, images) == []
    (size,) = of_images(replace(GOOD, size=Size(31, 40), annotations=()), images)
    assert (size.problem, size.text) == (
        Problem.IMAGE_SIZE,
        "is 40x31, the image file 40x30",
    )

    photo(images / "tief" / "b.png", SIZE)
    (images / "notes.txt").write_text("no image")
    (missing, without) = of_images(replace(GOOD, file_name="c.jpg"), images)[:2]
    assert (missing.problem, missing.place) == (Problem.IMAGE_MISSING, "c.jpg")
    assert without == Finding(Problem.RECORD_MISSING, "a.jpg", "the image has no record")

    (images / "a.jpg").write_bytes(b"broken")
    broken, other = of_images(GOOD, images)
    assert (broken.problem, broken.text) == (
        Problem.IMAGE_MISSING,
        "is not an image that can be read",
    )
    assert other.place == "tief/b.png"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_sizes_are_those_after_the_exif_orientation(images: Path, suffix: str) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    (images / "a.jpg").unlink()
    photo(images / f"a.{suffix}", Size(40, 30), exif=turned)

    assert of_images(replace(GOOD, file_name=f"a.{suffix}"), images) == []
    stored = replace(GOOD, file_name=f"a.{suffix}", size=Size(40, 30), annotations=())
    (finding,) = of_images(stored, images)
    assert finding.text == "is 30x40, the image file 40x30 as displayed, after its EXIF orientation"


def test_records_that_are_not_valid_are_findings_and_the_others_are_checked(
    tmp_path: Path,
) -> None:
    good = sa1b.record_path(tmp_path, "c.jpg")
    sa1b.write_file(good, replace(GOOD, file_name="c.jpg"))
    (tmp_path / "a.jpg.json").write_text("{")
    value = json.loads(good.read_text())
    value["annotations"][1]["segmentation"]["counts"] = "zz"
    (tmp_path / "b.jpg.json").write_text(json.dumps(value))

    photo(tmp_path / "images" / "a.jpg", SIZE)
    photo(tmp_path / "images" / "c.jpg", SIZE)

    check = Check(reading.open_dataset(tmp_path), tmp_path / "images")
    broken, counts, *categories, without = check.findings()

    assert broken.place == str(tmp_path / "a.jpg.json")
    assert broken.text.startswith("is not valid JSON")
    assert counts.place == f"{tmp_path / 'b.jpg.json'}: annotations[1] (id 2): segmentation"
    assert [each.problem for each in categories] == [Problem.CATEGORY] * 2
    assert without == Finding(Problem.RECORD_MISSING, "a.jpg", "the image has no valid record")
    assert check.images == 1


def test_yolo_labels_without_an_image_are_found_and_other_texts_are_not(tmp_path: Path) -> None:
    photo(tmp_path / "images" / "train" / "a.PNG", SIZE)
    labels = tmp_path / "labels" / "train"
    labels.mkdir(parents=True)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [cat]\n")
    for name in ("a.txt", "classes.txt", "b.txt"):
        (labels / name).write_text("0 0.5 0.5 0.5 0.5\n")
    (labels / "empty.txt").write_text("")

    for images in (None, tmp_path / "images"):
        (finding,) = Check(reading.open_dataset(tmp_path, images=images)).findings()
        assert (finding.problem, finding.place) == (Problem.IMAGE_MISSING, str(labels / "b.txt"))
