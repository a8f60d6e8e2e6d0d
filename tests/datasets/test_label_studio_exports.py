"""Exports of Label Studio, with the work of annotators, are read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samserve.core import run_lengths
from samserve.datasets.label_studio.reading import read
from samserve.datasets.label_studio.writing import image_url
from samserve.datasets.types import Origin, Polygons
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests import sample_images
from tests.datasets.label_studio_tasks import (
    SIZE,
    SQUARE,
    annotated,
    annotation,
    disc,
    export,
    image,
    one,
    regions,
    result_of,
    written,
)
from tests.datasets.tool_records import mask_of


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


def test_regions_of_different_sizes_of_an_image_are_named(tmp_path: Path) -> None:
    (task,) = written(tmp_path / "out", image(annotation(), annotation()))
    regions(task)[1]["original_width"] = 21

    with pytest.raises(InvalidRequest, match="has regions of different sizes of the image"):
        list(read(export(tmp_path, task)).images)


def test_names_of_files_that_are_not_utf8_are_quoted() -> None:
    assert image_url("/x/", os.fsdecode(b"\xff.jpg")) == "/x/%FF.jpg"
