"""Masks of every format in the Python client."""

from __future__ import annotations

import asyncio
import json
from typing import Any, get_args

import numpy as np
import pytest
import shapely
from samserve.client import (
    Client,
    InvalidArgument,
    Mask,
    MaskFormat,
    PolygonOptions,
    Prompt,
    SyncClient,
    png_masks,
)

FORMATS = get_args(MaskFormat)
EXACT = PolygonOptions(tolerance=0)
IMAGE = np.full((96, 128, 3), 90, dtype=np.uint8)
POINT = Prompt(points=[(20, 30)])


def options_of(mask_format: str) -> dict[str, Any]:
    options = {"polygon_options": EXACT} if mask_format == "polygons" else {}
    return {"mask_format": mask_format, **options}


async def predicted(client: Client, **options: Any) -> Mask:
    prediction = await client.predict(IMAGE, [POINT], **options)
    return prediction.results[0][0]


@pytest.mark.parametrize("mask_format", FORMATS)
async def test_every_format_decodes_to_the_same_mask(mask_format: str, client: Client) -> None:
    expected = await predicted(client)
    mask = await predicted(client, **options_of(mask_format))

    assert expected.array.sum() == expected.area == mask.area > 0
    assert (mask.bbox, mask.predicted_iou) == (expected.bbox, expected.predicted_iou)
    assert mask.stability_score == expected.stability_score
    if mask_format == "box":
        assert mask.size == (0, 0)
        with pytest.raises(ValueError, match="no pixels"):
            mask.decode()
        with pytest.raises(ValueError, match="no pixels"):
            _ = mask.rle
        return
    assert mask.size == expected.size == (96, 128)
    assert mask.array.dtype == np.bool_
    assert np.array_equal(mask.array, expected.array)
    assert mask.rle == expected.rle


async def test_formats_are_in_fields_of_their_own(client: Client) -> None:
    names = {
        "coco_rle": "counts",
        "uncompressed_rle": "runs",
        "binary_mask": "bits",
        "png": "png",
        "polygons": "polygons",
        "box": None,
    }
    assert set(names) == set(FORMATS)
    for mask_format, name in names.items():
        mask = await predicted(client, mask_format=mask_format)

        values = {each: getattr(mask, each) for each in names.values() if each}
        assert [each for each, value in values.items() if value] == ([name] if name else [])


async def test_automask_has_the_same_masks_in_every_format(client: Client) -> None:
    every = {"points_per_side": 2, "stability_score_thresh": 0.0}
    expected = await client.automask_all(IMAGE, **every)  # type: ignore[arg-type]
    for mask_format in FORMATS:
        options = {**options_of(mask_format), **every}
        result = await client.automask_all(IMAGE, **options)

        assert len(result.records) == len(expected.records) > 0
        for record, other in zip(result.records, expected.records, strict=True):
            assert record.mask.area == other.mask.area
            if mask_format != "box":
                assert np.array_equal(record.mask.array, other.mask.array)


async def test_polygons_are_readable_by_shapely_and_as_geojson(client: Client) -> None:
    frame = np.zeros((96, 128), dtype=np.bool_)
    frame[10:60, 10:70] = True
    frame[30:50, 20:60] = False
    frame[70:90, 100:120] = True
    prediction = await client.predict(
        IMAGE,
        [Prompt(mask=frame)],
        mask_format="polygons",
        polygon_options=PolygonOptions(tolerance=0.5, min_area=4),
    )

    polygons = prediction.results[0][0].polygons
    assert polygons is not None
    assert [len(part.holes) for part in polygons.parts] == [1, 0]
    assert polygons.parts[0].exterior.dtype == np.float32
    shape = shapely.geometry.shape(polygons)
    assert shape.is_valid
    assert shape == shapely.MultiPolygon(polygons.shells_and_holes())
    assert shape == shapely.from_geojson(json.dumps(polygons.geojson))
    y, x = np.mgrid[:96, :128] + 0.5
    strictly, with_lines = shapely.contains_xy(shape, x, y), shapely.intersects_xy(shape, x, y)
    decoded = polygons.decode()
    assert (strictly <= decoded).all()
    assert (decoded <= with_lines).all()
    assert 0.9 < polygons.iou <= 1


async def test_changes_of_masks_are_sent(client: Client) -> None:
    box = Prompt(points=[(20, 30)], box=(18, 20, 30, 34))
    plain = (await client.predict(IMAGE, [box])).results[0][0]
    clipped = (await client.predict(IMAGE, [box], clip_to_box=True)).results[0][0]

    y, x = np.nonzero(clipped.array)
    assert 0 < clipped.area < plain.area
    assert (x.min(), y.min()) == (18, 20)
    mask = np.zeros((96, 128), dtype=np.bool_)
    mask[10:60, 10:60] = True
    mask[30:40, 30:40] = False
    mask[70:80, 100:110] = True
    prompts = [Prompt(mask=mask)]
    before = (await client.predict(IMAGE, prompts)).results[0][0]
    filled = (await client.predict(IMAGE, prompts, min_hole_area=400)).results[0][0]
    without = (await client.predict(IMAGE, prompts, min_island_area=400)).results[0][0]
    assert without.area < before.area < filled.area


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"mask_format": "jpeg"}, "mask_format must be one of 'coco_rle', .* got 'jpeg'"),
        ({"mask_format": "png", "low_res_logits": "only"}, "no meaning"),
        ({"min_island_area": -1}, "min_island_area must be an integer from 0"),
        ({"min_hole_area": 1.5}, "min_hole_area must be an integer"),
        ({"clip_to_box": "yes"}, "clip_to_box must be True or False, got 'yes'"),
        ({"polygon_options": PolygonOptions(min_area=2**31)}, "an integer below"),
        ({"polygon_options": PolygonOptions(tolerance="1")}, "a number as tolerance"),  # type: ignore[arg-type]
    ],
)
async def test_invalid_values_are_named(options: dict[str, Any], text: str, client: Client) -> None:
    with pytest.raises(ValueError, match=text):
        await predicted(client, **options)


async def test_options_of_another_type_are_rejected(client: Client) -> None:
    with pytest.raises(TypeError, match="must be PolygonOptions, got 1"):
        await predicted(client, mask_format="polygons", polygon_options=1)


async def test_polygon_options_of_another_format_are_reported_by_the_server(
    client: Client,
) -> None:
    with pytest.raises(InvalidArgument, match="polygon_options"):
        await predicted(client, polygon_options=EXACT)


async def test_blocking_client_has_the_same_options(target: str) -> None:
    def call() -> tuple[Mask, list[Mask]]:
        with SyncClient(target) as client:
            options = options_of("polygons")
            prediction = client.predict(IMAGE, [POINT], **options)
            result = client.automask_all(IMAGE, points_per_side=1, mask_format="box")
        return prediction.results[0][0], [record.mask for record in result.records]

    mask, boxes = await asyncio.to_thread(call)

    assert mask.polygons is not None
    assert mask.polygons.iou == 1
    assert all(each.size == (0, 0) for each in boxes)


def test_file_that_is_no_png_is_rejected() -> None:
    with pytest.raises(ValueError, match="not a PNG"):
        png_masks.size(b"GIF89a" + bytes(40))
