"""Annotating what is missing in a data set."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from samserve.annotate.automask import AutoMaskSegmenter
from samserve.annotate.exclusions import Exclusions, MissingSegmenter, read_single
from samserve.annotate.gateways import Gateways
from samserve.annotate.pipeline import State
from samserve.client import AutoMaskOptions, Model
from samserve.core import rle
from samserve.datasets.types import Origin
from samserve.errors import InvalidRequest

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

OPTIONS = AutoMaskOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
BEST = AutoMaskOptions(**OPTIONS, max_masks=3)
NAMES = ("a.png", "sub folder/b.png", "c.png")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateways() -> AsyncIterator[Gateways]:
    async with gateways_of() as connected:
        yield connected


def everything(options: AutoMaskOptions) -> Callable[[Model, Mapping[str, int]], AutoMaskSegmenter]:
    return lambda model, limits: AutoMaskSegmenter.of(model, options)


def missing(
    known: Exclusions, options: AutoMaskOptions = OPTIONS, **changed: Any
) -> Callable[[Model, Mapping[str, int]], MissingSegmenter]:
    def segmenter(model: Model, limits: Mapping[str, int]) -> MissingSegmenter:
        most = changed.get("max_masks", limits["max_exclude_masks"])
        made = MissingSegmenter(AutoMaskSegmenter.of(model, options), known, most)
        # As for other machines.
        return pickle.loads(pickle.dumps(made))

    return segmenter


async def test_what_is_missing_is_proposed(gateways: Gateways, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", *NAMES)
    await annotate(gateways, photos, tmp_path / "first", everything(BEST))
    # One image of the source has not been annotated.
    (tmp_path / "first" / "records" / "c.png.json").unlink()
    known = Exclusions.read(tmp_path / "first", NAMES)

    summary = await annotate(gateways, photos, tmp_path / "second", missing(known))

    first, second = records_of(tmp_path / "first"), records_of(tmp_path / "second")
    assert (summary.annotated, summary.failures) == (3, [])
    assert set(second) == set(NAMES)
    for name in NAMES[:2]:
        masks = [mask_of(each) for each in first[name].annotations]
        proposed = [mask_of(each) for each in second[name].annotations]
        assert len(masks) == 3
        assert proposed
        assert max(iou(mask, other) for mask in masks for other in proposed) <= 0.7
    assert len(second["c.png"].annotations) > len(second["a.png"].annotations)
    origins = {each.origin for record in second.values() for each in record.annotations}
    assert origins == {Origin.PROPOSED}


async def test_images_are_annotated_again_when_their_masks_change(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", *NAMES)
    first, out = tmp_path / "first", tmp_path / "out"
    await annotate(gateways, photos, first, everything(BEST))
    known = Exclusions.read(first, NAMES)
    await annotate(gateways, photos, out, missing(known))
    same = await annotate(gateways, photos, out, missing(Exclusions.read(first, NAMES)))

    record = first / "records" / "a.png.json"
    value = json.loads(record.read_text())
    del value["annotations"][0]
    record.write_text(json.dumps(value))
    changed = Exclusions.read(first, NAMES)
    again = await annotate(gateways, photos, out, missing(changed))

    assert (same.unchanged, same.annotated) == (3, 0)
    assert (again.unchanged, again.annotated, again.replaced) == (2, 1, 1)
    segmenters = [MissingSegmenter(AutoMaskSegmenter("fake"), each, 9) for each in (known, changed)]
    # The description of the run changes too.
    assert segmenters[0].fingerprint("") != segmenters[1].fingerprint("")


async def test_image_with_too_many_masks_fails_alone(gateways: Gateways, tmp_path: Path) -> None:
    photos = write_images(tmp_path / "photos", *NAMES)
    await annotate(gateways, photos, tmp_path / "first", everything(BEST))
    shutil.rmtree(tmp_path / "first" / "records" / "sub folder")
    known = Exclusions.read(tmp_path / "first", NAMES)

    summary = await annotate(gateways, photos, tmp_path / "out", missing(known, max_masks=2))

    failed = {each.name: each for each in summary.failures}
    assert set(failed) == {"a.png", "c.png"}
    assert failed["a.png"].state is State.FAILED
    assert "has 3 masks in the data set; the server excludes at most 2" in failed["a.png"].reason


async def test_masks_of_another_size_fail_with_both_sizes(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", "a.png")
    file = coco_file(tmp_path, {"width": 50, "height": 40})
    known = Exclusions.read(file, ["a.png"])

    summary = await annotate(gateways, photos, tmp_path / "out", missing(known))

    (failure,) = summary.failures
    assert f"{SIZE[0]}x{SIZE[1]}; got 40x50" in failure.reason


def coco_file(folder: Path, image: dict[str, Any], **annotation: Any) -> Path:
    """Write a COCO file with a square of 20 pixels as a polygon."""
    square = [[10, 10, 30, 10, 30, 30, 10, 30]]
    size = {"width": SIZE[1], "height": SIZE[0]}
    value = {
        "images": [{"id": 1, "file_name": "a.png", **size, **image}],
        "annotations": [
            {"id": 7, "image_id": 1, "category_id": 1, "segmentation": square, **annotation},
            {"id": 8, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]},
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    file = folder / "instances.json"
    file.write_text(json.dumps(value))
    return file


async def test_polygons_are_filled_and_boxes_are_counted(tmp_path: Path) -> None:
    known = Exclusions.read(coco_file(tmp_path, {}), ["a.png", "b.png"])

    (masks,) = known.masks.values()
    (mask,) = masks.masks
    assert (masks.without_pixels, known.others) == (1, 0)
    pixels = rle.decode(mask)
    assert pixels.shape == SIZE
    assert np.count_nonzero(pixels) == np.count_nonzero(pixels[10:30, 10:30]) == 400


async def test_masks_of_a_single_image_are_read_from_any_file(
    gateways: Gateways, tmp_path: Path
) -> None:
    photos = write_images(tmp_path / "photos", *NAMES)
    await annotate(gateways, photos, tmp_path / "first", everything(BEST))
    records = tmp_path / "first" / "records"
    value = json.loads((records / "a.png.json").read_text())
    results = tmp_path / "results.json"
    parts = [
        {"image_id": 4, "category_id": 1, "score": 0.5, "segmentation": each["segmentation"]}
        for each in value["annotations"]
    ]
    results.write_text(json.dumps(parts))

    record = read_single(records / "a.png.json", "another name.png")

    assert len(record.masks) == 3
    assert read_single(tmp_path / "first", "a.png") == record
    assert read_single(results, "a.png").masks == record.masks
    with pytest.raises(InvalidRequest, match=r"has no image 'z.png'"):
        read_single(tmp_path / "first", "z.png")
    results.write_text(json.dumps([*parts, {**parts[0], "image_id": 5}]))
    with pytest.raises(InvalidRequest, match="results of 2 images"):
        read_single(results, "a.png")
