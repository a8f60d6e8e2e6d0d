"""One mask for each box, or for the points, of a detector's COCO file."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from samserve.annotate.gateways import Gateways
from samserve.annotate.prompts import GivenPrompts, Kind, PromptSegmenter
from samserve.client import Model
from samserve.datasets.types import Origin
from samserve.errors import InvalidRequest
from samserve.types import Size

from tests.annotate.serving import (
    SIZE,
    annotate,
    gateways_of,
    iou,
    mask_of,
    records_of,
    write_images,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

HEIGHT, WIDTH = SIZE
CATEGORIES = [{"id": 3, "name": "cat"}, {"id": 9, "name": "dog"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    async with gateways_of() as connected:
        yield connected


def coco_file(folder: Path, **annotations: list[dict[str, Any]]) -> Path:
    """Write a COCO file; the keywords are images, and lists of their annotations."""
    images, every = [], []
    for image_id, (name, given) in enumerate(annotations.items(), start=1):
        file_name = f"{name}.png"
        images.append({"id": image_id, "file_name": file_name, "width": WIDTH, "height": HEIGHT})
        every += [{"image_id": image_id, "category_id": 3, **each} for each in given]
    for number, each in enumerate(every, start=1):
        each.setdefault("id", 100 + number)
    file = folder / "detections.json"
    file.write_text(json.dumps({"images": images, "annotations": every, "categories": CATEGORIES}))
    return file


def segmenter(
    given: GivenPrompts, **limits: int
) -> Callable[[Model, Mapping[str, int]], PromptSegmenter]:
    def make(model: Model, served: Mapping[str, int]) -> PromptSegmenter:
        allowed = {**served, **limits}
        made = PromptSegmenter(model.name, given, allowed["max_prompts"], allowed["max_points"])
        return pickle.loads(pickle.dumps(made))

    return make


def ellipse(x: float, y: float, width: float, height: float) -> np.ndarray:
    """Return what the fake engine draws for a box: an ellipse of half its sides."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    across = (columns - x - width / 2) / (width / 4)
    down = (rows - y - height / 2) / (height / 4)
    return np.asarray(across**2 + down**2 < 1)


async def test_each_box_gets_a_mask_with_its_category_and_score(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", "a.png", "b.png", "c.png")
    boxes = [(10, 10, 40, 30), (60, 20, 30, 60), (5, 50, 25, 25), (20, 30, 80, 50), (90, 4, 30, 30)]
    given = [
        {"bbox": box, "category_id": 9, "score": 0.1 * number, "note": f"box {number}"}
        for number, box in enumerate(boxes, start=1)
    ]
    file = coco_file(tmp_path, a=given, b=[])
    prompts = GivenPrompts.read(file, Kind.BOXES, ["a.png", "b.png", "c.png"])

    # Several Predicts.
    summary = await annotate(gateways, photos, tmp_path / "out", segmenter(prompts, max_prompts=2))

    records = records_of(tmp_path / "out")
    assert (summary.annotated, summary.masks, summary.failures) == (3, 5, [])
    assert [len(records[name].annotations) for name in ("a.png", "b.png", "c.png")] == [5, 0, 0]
    assert {record.size for record in records.values()} == {Size(*SIZE)}
    for number, (box, annotation) in enumerate(
        zip(boxes, records["a.png"].annotations, strict=True), start=1
    ):
        assert iou(mask_of(annotation), ellipse(*box)) > 0.8
        assert (annotation.category_id, annotation.score) == (9, pytest.approx(0.1 * number))
        assert annotation.origin is Origin.PROPOSED
        assert annotation.predicted_iou is not None
        assert annotation.attributes == {"note": f"box {number}", "prompt_id": 100 + number}
    assert [each.name for each in prompts.categories] == ["cat", "dog"]


async def test_boxes_are_clipped_to_the_image(gateways: Gateways, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", "a.png")
    file = coco_file(tmp_path, a=[{"bbox": [-20, 60, 60, 100]}, {"bbox": [0, 60, 40, 36]}])
    prompts = GivenPrompts.read(file, Kind.BOXES, ["a.png"])

    await annotate(gateways, photos, tmp_path / "out", segmenter(prompts))

    first, second = records_of(tmp_path / "out")["a.png"].annotations
    assert first.segmentation == second.segmentation


@pytest.mark.parametrize(
    ("kind", "given", "reason"),
    [
        (
            Kind.BOXES,
            {"bbox": [500, 5, 10, 10]},
            "annotation 101 has a box outside of the image of",
        ),
        (Kind.BOXES, {"bbox": [WIDTH, 5, 10, 10]}, "bbox [128, 5, 10, 10]"),
        (
            Kind.BOXES,
            {"bbox": [5, 5, 0, 10]},
            "101 has an empty box: bbox [5, 5, 0, 10]",
        ),
        (Kind.BOXES, {"bbox": [5, 5, -3, 10]}, "annotation 101 has an empty box"),
        (Kind.POINTS, {"point_coords": [[5, 5], [5, 97]]}, "101 has the point (5, 97) outside"),
        (
            Kind.POINTS,
            {"point_coords": [[5, 5]] * 65},
            "has 65 points; the server takes",
        ),
    ],
)
async def test_image_with_a_prompt_outside_fails_with_the_annotation_s_id(
    kind: Kind, given: dict[str, Any], reason: str, gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", "a.png", "b.png")
    good = {"bbox": [9, 9, 20, 20], "point_coords": [[5, 5]]}
    prompts = GivenPrompts.read(coco_file(tmp_path, a=[given], b=[good]), kind, ["a.png", "b.png"])

    summary = await annotate(gateways, photos, tmp_path / "out", segmenter(prompts))

    assert summary.annotated == 1
    (failure,) = summary.failures
    assert failure.name == "a.png"
    assert reason in failure.reason


async def test_points_and_keypoints_get_one_mask_each(gateways: Gateways, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", "a.png")
    keypoints = [30, 40, 2, 0, 0, 0, 34, 44, 1]
    given = [
        {"point_coords": [[90, 50]]},
        {"keypoints": keypoints, "num_keypoints": 2, "bbox": [0, 0, 5, 5]},
        {"point_coords": [[30, 40], [34, 44]]},
    ]
    prompts = GivenPrompts.read(coco_file(tmp_path, a=given), Kind.POINTS, ["a.png"])

    await annotate(gateways, photos, tmp_path / "out", segmenter(prompts))

    point, from_keypoints, from_points = records_of(tmp_path / "out")["a.png"].annotations
    assert mask_of(point)[50, 90]
    assert not mask_of(point)[42, 32]
    assert mask_of(from_keypoints)[42, 32]
    assert from_keypoints.segmentation == from_points.segmentation
    assert from_keypoints.attributes["keypoints"] == keypoints
    assert from_keypoints.point_coords == from_points.point_coords == ((30, 40), (34, 44))


async def test_annotations_with_pixels_have_the_box_of_these(tmp_path: Path) -> None:
    ring = [[10, 10, 40, 10, 40, 30, 10, 30]]
    counts = [10 * HEIGHT + 5, 20, (WIDTH - 10) * HEIGHT - 25]
    lengths = {"size": [HEIGHT, WIDTH], "counts": counts}
    file = coco_file(
        tmp_path,
        a=[{"bbox": [1, 1, 5, 5], "segmentation": ring}, {"segmentation": lengths}],
    )

    prompts = GivenPrompts.read(file, Kind.BOXES, ["a.png"])

    boxes = [each.box for each in prompts.annotations["a.png"]]
    assert boxes == [(10, 10, 30, 20), (10, 5, 1, 20)]
    assert all(each.segmentation is None for each in prompts.annotations["a.png"])


async def test_a_list_of_results_needs_the_file_of_its_images(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", "deep/a.png", "b.png")
    images = coco_file(tmp_path, a=[], b=[])
    results = tmp_path / "results.json"
    found = [{"image_id": 1, "category_id": 9, "bbox": [9, 9, 30, 30], "score": 0.75}]
    results.write_text(json.dumps(found))
    prompts = GivenPrompts.read(results, Kind.BOXES, ["deep/a.png", "b.png"], images)

    summary = await annotate(gateways, photos, tmp_path / "out", segmenter(prompts))

    (annotation,) = records_of(tmp_path / "out")["deep/a.png"].annotations
    assert (annotation.score, annotation.category_id, summary.masks) == (0.75, 9, 1)


async def test_a_list_of_results_alone_names_the_option_that_it_needs(tmp_path: Path) -> None:
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 1, "bbox": [9, 9, 30, 30], "score": 0.75}]))

    with pytest.raises(InvalidRequest, match="--image-list must name the COCO file"):
        GivenPrompts.read(results, Kind.BOXES, ["a.png"])


async def test_annotations_whose_keypoints_are_not_labelled_are_left_out(tmp_path: Path) -> None:
    file = coco_file(tmp_path, a=[{"keypoints": [0, 0, 0] * 17}, {"keypoints": [9, 8, 1, 0, 0, 0]}])

    prompts = GivenPrompts.read(file, Kind.POINTS, ["a.png"])

    (annotation,) = prompts.annotations["a.png"]
    assert (annotation.point_coords, prompts.unlabelled) == (((9, 8),), 1)


async def test_images_are_annotated_again_when_their_prompts_change(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", "a.png", "b.png")

    async def run(**changed: Any) -> tuple[int, int]:
        first = {"bbox": [9, 9, 30, 30], "score": 0.5, **changed}
        file = coco_file(tmp_path, a=[first], b=[{"bbox": [1, 1, 20, 20]}])
        prompts = GivenPrompts.read(file, Kind.BOXES, ["a.png", "b.png"])
        summary = await annotate(gateways, photos, tmp_path / "out", segmenter(prompts))
        return summary.annotated, summary.unchanged

    assert await run() == (2, 0)
    assert await run() == (0, 2)
    for changed in ({"bbox": [9, 9, 30, 31]}, {"score": 0.6}, {"category_id": 9}, {"note": "x"}):
        assert await run(**changed) == (1, 1)


async def test_boxes_are_in_the_image_as_displayed(gateways: Gateways, tmp_path: Path) -> None:
    """A photo that its orientation turns: 96 pixels wide in the file, 128 as displayed."""
    folder = tmp_path / "photos"
    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH)).save(folder / "a.png", exif=exif)
    prompts = GivenPrompts.read(
        coco_file(tmp_path, a=[{"bbox": [100, 10, 25, 80]}]), Kind.BOXES, ["a.png"]
    )

    summary = await annotate(gateways, folder, tmp_path / "out", segmenter(prompts))

    assert summary.failures == []
    (annotation,) = records_of(tmp_path / "out")["a.png"].annotations
    assert iou(mask_of(annotation), ellipse(100, 10, 25, 80)) > 0.8


@pytest.mark.parametrize(
    ("kind", "given", "text"),
    [
        (Kind.BOXES, {"point_coords": [[1, 1]]}, "annotation 101: has no bbox"),
        (Kind.POINTS, {"bbox": [1, 1, 2, 2]}, "has neither point_coords nor keypoints"),
        (Kind.POINTS, {"keypoints": []}, "has neither point_coords nor keypoints"),
        (Kind.POINTS, {"keypoints": [1, 1]}, "keypoints: must be a list of numbers"),
        (Kind.POINTS, {"keypoints": ["1", 1, 2]}, "keypoints: must be a list of numbers"),
        (Kind.BOXES, {"bbox": [1, 1, 2]}, "bbox"),
        (Kind.BOXES, {"bbox": [1, 1, 2, "x"]}, "bbox"),
    ],
)
async def test_data_set_without_valid_prompts_is_rejected_by_annotation(
    kind: Kind, given: dict[str, Any], text: str, tmp_path: Path
) -> None:
    file = coco_file(tmp_path, a=[given])

    with pytest.raises(InvalidRequest) as raised:
        GivenPrompts.read(file, kind, ["a.png"])

    assert "101" in raised.value.message
    assert text in raised.value.message
