"""Tasks of Label Studio: written and read again, and the exports of annotators' work."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from samserve.core import run_lengths
from samserve.datasets.formats import SegmentationKind, WriteOptions
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.reading import read, recognises
from samserve.datasets.label_studio.writing import image_url, write_folder
from samserve.datasets.types import (
    Annotation,
    Category,
    DataSet,
    ImageRecord,
    Origin,
    Polygons,
    Xywh,
)
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests import sample_images
from tests.bridge.label_studio import mask_of as mask_of_region
from tests.datasets.tool_records import CATEGORIES, facts, has_pixels, mask_of, records
from tests.support.examples import examples
from tests.tools.label_studio.projects import CONFIG

SIZE = Size(20, 30)
SQUARE: Xywh = (4.0, 2.0, 10.0, 8.0)


def disc(size: Size = SIZE, radius: float = 6.0) -> np.ndarray:
    rows, columns = np.mgrid[: size.height, : size.width]
    found: np.ndarray = np.hypot(rows - size.height / 2, columns - size.width / 2) < radius
    return found


def annotation(**changes: Any) -> Annotation:
    made = Annotation(run_lengths.encode(disc()), category_id=3, score=0.5)
    return replace(made, **changes)


def image(*annotations: Annotation, name: str = "a.jpg") -> ImageRecord:
    return ImageRecord(name, SIZE, annotations)


def written(folder: Path, *images: ImageRecord, **options: Any) -> list[dict[str, Any]]:
    """Write images, and return their tasks."""
    write_folder(DataSet(images, CATEGORIES), folder, WriteOptions(**options))
    found: list[dict[str, Any]] = json.loads((folder / "tasks.json").read_text())
    return found


def regions(task: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = task["predictions"][0]["result"]
    return found


def export(folder: Path, *tasks: dict[str, Any]) -> Path:
    path = folder / "project-1-at-2026-01-01.json"
    path.write_text(json.dumps(tasks))
    return path


def annotated(task: dict[str, Any], *annotations: dict[str, Any]) -> dict[str, Any]:
    """Return a task as Label Studio exports it after annotators have submitted."""
    kept = {"id": 1, "data": task["data"], "predictions": [17]}
    return {**kept, "annotations": list(annotations)}


def result_of(result: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    base = {"id": 1, "was_cancelled": False, "ground_truth": False, "parent_prediction": None}
    times = {"created_at": "2026-01-01T10:00:00.000000Z"}
    return {**base, **times, "result": result, **values}


def one(path: Path) -> Annotation:
    """Return the only annotation of a file."""
    (found,) = read(path).images
    (only,) = found.annotations
    return only


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


@pytest.mark.parametrize(
    ("origin", "parent", "expected"),
    [
        ("prediction", 17, Origin.ACCEPTED),
        ("prediction-changed", 17, Origin.CORRECTED),
        ("manual", 17, Origin.ADDED),
        ("manual", None, Origin.ADDED),
        # Label Studio's action that makes annotations of predictions copies the regions.
        (None, 17, Origin.ACCEPTED),
        (None, None, Origin.ADDED),
    ],
)
def test_origin_is_what_the_annotator_has_done(
    tmp_path: Path, origin: str | None, parent: int | None, expected: Origin
) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    (region,) = regions(task)
    if origin is not None:
        region["origin"] = origin
    exported = annotated(task, result_of([region], parent_prediction=parent))

    assert one(export(tmp_path, exported)).origin is expected


def test_origin_of_what_a_person_had_made_before_stays(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation(origin=Origin.ADDED)))
    (region,) = regions(task)

    for origin in ("prediction", "prediction-changed"):
        exported = annotated(task, result_of([{**region, "origin": origin}]))
        assert one(export(tmp_path, exported)).origin is Origin.ADDED


def test_newest_annotation_counts_and_ground_truth_before_it(tmp_path: Path) -> None:
    small, middle, large = (
        regions(
            written(
                tmp_path / str(radius),
                image(annotation(segmentation=run_lengths.encode(disc(radius=radius)))),
            )[0]
        )
        for radius in (2.0, 4.0, 6.0)
    )
    (task,) = written(tmp_path / "out", image())
    old = result_of(small, id=1)
    new = result_of(middle, id=2, updated_at="2026-01-02T10:00:00.000000Z")
    cancelled = result_of(large, id=3, was_cancelled=True, updated_at="2026-01-03T10:00:00.000000Z")

    found = one(export(tmp_path, annotated(task, new, cancelled, old)))
    truth = one(export(tmp_path, annotated(task, new, {**old, "ground_truth": True})))

    np.testing.assert_array_equal(mask_of(found, SIZE), disc(radius=4.0))
    np.testing.assert_array_equal(mask_of(truth, SIZE), disc(radius=2.0))


def test_skipped_tasks_are_left_out_and_empty_ones_are_not(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    skipped = annotated(task, result_of(regions(task), was_cancelled=True))
    empty = annotated(task, result_of([]))

    found = list(read(export(tmp_path, skipped, empty)).images)

    assert [each.annotations for each in found] == [()]


def test_rectangles_become_boxes_and_rotated_ones_polygons(tmp_path: Path) -> None:
    box = annotation(segmentation=None, box=SQUARE)
    (task,) = written(tmp_path / "out", image(box))
    (region,) = regions(task)

    assert one(export(tmp_path, annotated(task, result_of([region])))).box == pytest.approx(SQUARE)
    region["value"]["rotation"] = 90
    turned = one(export(tmp_path, annotated(task, result_of([region]))))

    # Clockwise around the upper left corner.
    assert isinstance(turned.segmentation, Polygons)
    ((ring,),) = turned.segmentation.parts
    expected = [(4, 2), (4, 12), (-4, 12), (-4, 2)]
    np.testing.assert_allclose(ring, expected, atol=1e-3)


def test_ellipses_become_polygons(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    (region,) = regions(task)
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 30, "ellipselabels": ["cat"]}
    region |= {"type": "ellipselabels", "value": value}

    found = one(export(tmp_path, annotated(task, result_of([region]))))

    area = int(mask_of(found, SIZE).sum())
    assert area == pytest.approx(np.pi * 6 * 6, rel=0.05)


def test_rotation_of_the_shown_image_changes_nothing(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    (region,) = regions(task)
    region["image_rotation"] = 90

    found = one(export(tmp_path, annotated(task, result_of([region]))))

    np.testing.assert_array_equal(mask_of(found, SIZE), disc())


def test_label_is_that_of_the_control_for_the_shape(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    (region,) = regions(task)
    value = {key: each for key, each in region["value"].items() if key != "brushlabels"}
    # Label Studio adds the label of the tool that is selected, and what is noted about a region.
    tool = {**region, "type": "keypointlabels", "from_name": "point"}
    tool["value"] = {**value, "keypointlabels": ["Tool"]}
    noted = {**region, "type": "choices", "from_name": "quality"}
    noted["value"] = {**value, "choices": ["good"]}
    separate = {**region, "type": "brush", "value": value}
    labels = {**region, "type": "labels", "value": {**value, "labels": ["cat"]}}

    for result in ([tool, noted, region], [separate, labels, noted]):
        path = export(tmp_path, annotated(task, result_of(result)))
        (category,) = read(path).categories
        assert category.name == "cat"
        assert one(path).attributes == {"quality": ["good"]}


def test_images_of_one_task_are_separate(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    (region,) = regions(task)
    task["data"] = {"image": ["a.jpg", "b.jpg"], "width": 30, "height": 20}
    second = {**region, "id": "other", "item_index": 1}

    found = list(
        read(export(tmp_path, annotated(task, result_of([region, second, region])))).images
    )

    assert [each.file_name for each in found] == ["a.jpg", "b.jpg"]
    assert [len(each.annotations) for each in found] == [1, 1]


def test_size_of_an_image_without_regions_is_that_of_its_file(tmp_path: Path) -> None:
    path = export(tmp_path, {"data": {"image": "photos/a.png"}, "annotations": [result_of([])]})
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(sample_images.png(48, 64))

    with pytest.raises(InvalidRequest, match="name the folder of the image files"):
        list(read(path).images)
    (found,) = read(path, tmp_path).images
    assert found.size == Size(48, 64)


def test_iteration_continues_after_a_task_that_is_not_valid(tmp_path: Path) -> None:
    good, bad, last = written(
        tmp_path / "out", *(image(annotation(), name=f"{name}.jpg") for name in "abc")
    )
    regions(bad)[0]["value"]["rle"] = [1, 2, 3]
    iterator = iter(read(export(tmp_path, good, bad, last)).images)

    assert next(iterator).file_name == "a.jpg"
    with pytest.raises(InvalidRequest, match=r"task 2: region \w+: is no brush: ends within a run"):
        next(iterator)
    assert next(iterator).file_name == "c.jpg"
    with pytest.raises(StopIteration):
        next(iterator)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"original_width": 31}, "has 2400 values, not 4 for each of 31x20 pixels"),
        ({"value": {"rle": [300], "format": "rle"}}, "is no brush"),
        ({"value": {"rle": 10**12, "format": "rle"}}, "its rle is not a list of bytes"),
        ({"value": {"rle": "AAAA", "format": "rle"}}, "its rle is not a list of bytes"),
        (
            {"value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 10**400}},
            "is no rectangle",
        ),
        ({"value": {"points": [[1, 1], [2, 2]]}}, "has fewer than 3 corners"),
        ({"value": {"points": [[1, 1], [2, 2], [3]]}}, "is no polygon"),
        ({"value": {"points": [[1, 1], [2, 2], [3, 1e9]]}}, "is not a percentage"),
        ({"value": {"x": "1", "y": 2, "width": 3, "height": 4}}, "is not a number"),
        ({"type": "bitmask", "value": {"imageDataURL": "data:"}}, "is a region of <BitMask>"),
        ({"original_width": -1}, "original_width"),
        ({"value": 3}, "value"),
    ],
)
def test_values_that_are_not_valid_are_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    (task,) = written(tmp_path / "out", image(annotation()))
    regions(task)[0].update(changes)

    with pytest.raises(InvalidRequest, match=message):
        list(read(export(tmp_path, task)).images)


@pytest.mark.parametrize("text", ["", "[", "[{}", '{"data": {}}', "[1]", '[{"data": 1}]', "[]x"])
def test_files_that_are_none_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tasks.json"
    path.write_text(text)

    with pytest.raises(InvalidRequest):
        list(read(path).images)


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


def test_regions_of_different_sizes_of_an_image_are_named(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation(), annotation()))
    regions(task)[1]["original_width"] = 21

    with pytest.raises(InvalidRequest, match="has regions of different sizes of the image"):
        list(read(export(tmp_path, task)).images)


def test_names_of_files_that_are_not_utf8_are_quoted() -> None:
    assert image_url("/x/", os.fsdecode(b"\xff.jpg")) == "/x/%FF.jpg"


def test_masks_that_brush_strokes_cannot_hold_are_named(tmp_path: Path) -> None:
    size = Size(40_000, 40_000)
    ring = ((1.0, 1.0), (9.0, 1.0), (9.0, 9.0))
    record = ImageRecord("a.jpg", size, (Annotation(Polygons(((ring,),))),))

    with pytest.raises(InvalidRequest, match=r"a.jpg: annotations\[0\]: a mask of 1600000000 "):
        write_folder(DataSet([record]), tmp_path / "out", WriteOptions())
