"""Tasks of Label Studio: written, and read again."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from samserve.core import run_lengths
from samserve.datasets.formats import SegmentationKind, WriteOptions
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.reading import read, recognises
from samserve.datasets.label_studio.writing import image_url, write_folder
from samserve.datasets.types import Annotation, Category, DataSet, ImageRecord, Origin, Polygons
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests.bridge.label_studio import mask_of as mask_of_region
from tests.datasets.label_studio_tasks import (
    SQUARE,
    annotation,
    disc,
    export,
    image,
    regions,
    written,
)
from tests.datasets.tool_records import CATEGORIES, facts, has_pixels, mask_of, records
from tests.support.examples import examples
from tests.tools.label_studio.projects import CONFIG


@given(records())
@examples(150)
def test_round_trip_keeps_pixels_labels_scores_and_origins(images: list[ImageRecord]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        write_folder(DataSet(images, CATEGORIES), out, WriteOptions())
        assert recognises(out)
        back = read(out)
        found = list(back.images)

    assert [each.name for each in back.categories] == [
        each.name for each in CATEGORIES
    ] or images == []
    assert [(each.file_name, each.size) for each in found] == [
        (each.file_name, each.size) for each in images
    ]
    for before, after in zip(images, found, strict=True):
        # What has no pixels is left out, and what has no origin is a proposal.
        kept = [
            replace(each, origin=each.origin or Origin.PROPOSED)
            for each in before.annotations
            if has_pixels(each, before.size)
        ]
        assert Counter(facts(each, before.size, CATEGORIES) for each in kept) == Counter(
            facts(each, before.size, back.categories) for each in after.annotations
        )


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_polygons_are_within_the_tolerance(tmp_path: Path, tolerance: float) -> None:
    size = Size(200, 300)
    mask = disc(size, 60.0) & ~disc(size, 20.0)
    mask[:10, :10] = True
    given_image = ImageRecord("a.jpg", size, (annotation(segmentation=run_lengths.encode(mask)),))

    tasks = written(
        tmp_path / "out",
        given_image,
        segmentation=SegmentationKind.POLYGONS,
        tolerance=tolerance,
    )
    (found,) = read(tmp_path / "out").images
    (after,) = found.annotations

    assert [each["type"] for each in regions(tasks[0])] == ["polygonlabels"] * 2
    assert isinstance(after.segmentation, Polygons)
    assert len(after.segmentation.parts) == 2
    different = mask_of(after, size) ^ mask
    if not tolerance:
        assert not different.any()
    # Pixels that differ are at the outline.
    near = mask.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            near ^= near & ~np.roll(mask, step, axis)
    inner, outer = near, np.zeros_like(mask)
    for axis in (0, 1):
        for step in (-1, 1):
            outer |= np.roll(mask, step, axis)
    assert not (different & (inner | ~outer)).any()


def test_brush_strokes_are_those_of_label_studio(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))

    (region,) = regions(task)
    assert region["type"] == "brushlabels"
    np.testing.assert_array_equal(mask_of_region(region), disc())
    assert region["value"]["brushlabels"] == ["cat"]
    assert region["score"] == 0.5
    assert (region["original_width"], region["original_height"]) == (30, 20)


def test_task_has_the_url_of_its_image(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(name="sub folder/b&c#.jpg"))

    assert task["data"]["image"] == "/data/local-files/?d=sub%20folder/b%26c%23.jpg"
    prefix = "/data/local-files/?d=photos/"
    assert image_url(prefix, "a b.jpg") == "/data/local-files/?d=photos/a%20b.jpg"
    assert image_url("https://host/", "a b.jpg") == "https://host/a%20b.jpg"
    assert image_url("s3://bucket/", "a b.jpg") == "s3://bucket/a b.jpg"


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("/data/local-files/?d=sub%20folder/b%26c.jpg", "sub folder/b&c.jpg"),
        ("https://host/images/a%20b.jpg?token=x", "images/a b.jpg"),
        ("s3://bucket/images/a%20b.jpg", "images/a%20b.jpg"),
        ("/data/upload/12/0a1b2c3d-my-photo.jpg", "my-photo.jpg"),
        ("photos/a.jpg", "photos/a.jpg"),
    ],
)
def test_names_come_from_urls(tmp_path: Path, url: str, name: str) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    task["data"] = {"image": url, "note": "text"}

    (found,) = read(export(tmp_path, task)).images

    assert found.file_name == name


def test_name_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    task["data"] = {"image": "/data/local-files/?d=../../etc/passwd.jpg"}

    with pytest.raises(InvalidRequest, match="has no name of an image"):
        list(read(export(tmp_path, task)).images)


def test_model_version_is_that_of_the_record(tmp_path: Path) -> None:
    record = replace(image(annotation()), metadata={"model": "tiny", "digest": "0123456789ab"})

    (named,) = written(tmp_path / "one", record)
    (chosen,) = written(tmp_path / "two", record, model_version="mine")

    assert named["predictions"][0]["model_version"] == "tiny 01234567"
    assert chosen["predictions"][0]["model_version"] == "mine"


def test_label_config_fits_the_tasks(tmp_path: Path) -> None:
    box = annotation(segmentation=None, box=SQUARE, category_id=7)
    (task,) = written(tmp_path / "out", image(annotation(), box, annotation(category_id=None)))

    config = LabelConfig.parse((tmp_path / "out" / "label_config.xml").read_text())

    assert config.images == {"image": "image"}
    controls = {each.name: each for each in config.controls}
    for region in regions(task):
        control = controls[region["from_name"]]
        (label,) = region["value"][region["type"]]
        assert (control.kind, control.image) == (region["type"], region["to_name"])
        assert label in control.labels
    assert "object" in controls["brush"].labels


def test_controls_of_the_project_decide(tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(CONFIG)
    categories = (Category(1, "Coin"), Category(2, "Outline"))
    both = image(annotation(category_id=1), annotation(category_id=2))

    write_folder(DataSet([both], categories), tmp_path / "out", WriteOptions(label_config=config))

    (task,) = json.loads((tmp_path / "out" / "tasks.json").read_text())
    assert [each["from_name"] for each in regions(task)] == ["brush", "polygon"]
    assert not (tmp_path / "out" / "label_config.xml").exists()
    other = DataSet([image(annotation(category_id=3))], (Category(3, "Other"),))
    with pytest.raises(InvalidRequest, match="no <BrushLabels> or <PolygonLabels> with the label"):
        write_folder(other, tmp_path / "other", WriteOptions(label_config=config))
    assert not (tmp_path / "other").exists()


def test_tolerance_of_the_label_config_is_used(tmp_path: Path) -> None:
    config = tmp_path / "config.xml"
    config.write_text(CONFIG.replace('name="polygon"', 'name="polygon" samserve_tolerance="3"'))
    data = DataSet([image(annotation(category_id=2))], (Category(2, "Outline"),))
    exact = WriteOptions(segmentation=SegmentationKind.POLYGONS)

    write_folder(data, tmp_path / "one", exact)
    write_folder(data, tmp_path / "two", WriteOptions(label_config=config))

    tasks = [json.loads((tmp_path / name / "tasks.json").read_text()) for name in ("one", "two")]
    exact_corners, corners = (len(regions(task)[0]["value"]["points"]) for (task,) in tasks)
    assert corners <= exact_corners / 2


def test_masks_that_brush_strokes_cannot_hold_are_named(tmp_path: Path) -> None:
    size = Size(40_000, 40_000)
    ring = ((1.0, 1.0), (9.0, 1.0), (9.0, 9.0))
    record = ImageRecord("a.jpg", size, (Annotation(Polygons(((ring,),))),))

    with pytest.raises(InvalidRequest, match=r"a.jpg: annotations\[0\]: a mask of 1600000000 "):
        write_folder(DataSet([record]), tmp_path / "out", WriteOptions())
