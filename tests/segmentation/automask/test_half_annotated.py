"""A half-annotated image on the real server: AutoMask finds the other half."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import numpy as np
import pytest
import pytest_asyncio
from samserve.client import AutoMaskResult, Client
from samserve.types import BoolArray

from tests.conftest import serving, settings_with

# The default model.
pytestmark = pytest.mark.asyncio(loop_scope="module")


def drawn() -> tuple[np.ndarray, list[BoolArray]]:
    """Return an image of 12 discs and rectangles, uint8 ``[360, 480, 3]``, and their pixels."""
    rows, columns = np.mgrid[:360, :480]
    rgb = np.full((360, 480, 3), (70, 90, 60), np.uint8)
    colours = np.random.default_rng(6).integers(0, 256, (12, 3))
    objects = []
    for index in range(12):
        x, y = 60 + 120 * (index % 4), 60 + 120 * (index // 4)
        disc = np.hypot(rows - y, columns - x) < 38
        rectangle = (abs(rows - y) < 32) & (abs(columns - x) < 40)
        pixels = disc if index % 2 else rectangle
        rgb[pixels] = colours[index]
        objects.append(pixels)
    return rgb, objects


IMAGE, OBJECTS = drawn()
CENTRES = np.array([(60 + 120 * (index % 4), 60 + 120 * (index // 4)) for index in range(12)])
# Two points on each object, and some beside them.
GRID = np.concatenate([CENTRES, CENTRES + 15, CENTRES[:3] + np.array([60, 0])]) / (480, 360)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def client() -> AsyncIterator[Client]:
    settings = settings_with(engine={"kind": "onnx"})
    async with serving(settings) as (running, _), Client(running.address) as connected:
        yield connected


def iou(first: BoolArray, second: BoolArray) -> float:
    return float(np.count_nonzero(first & second) / np.count_nonzero(first | second))


def found(objects: Sequence[BoolArray], masks: Sequence[BoolArray]) -> list[bool]:
    return [max((iou(each, mask) for mask in masks), default=0.0) > 0.9 for each in objects]


def masks_of(result: AutoMaskResult) -> list[BoolArray]:
    return [record.mask.decode() for record in result.records]


@pytest.mark.parametrize("annotated", [OBJECTS[::2], OBJECTS[:6]], ids=["every second", "half"])
async def test_second_pass_over_a_half_annotated_image_completes_it(
    annotated: list[BoolArray], client: Client
) -> None:
    others = [each for each in OBJECTS if not any(each is one for one in annotated)]

    result = await client.automask_all(IMAGE, point_grids=[GRID], exclude=annotated)
    masks = masks_of(result)

    assert all(found(others, masks))
    assert not any(found(annotated, masks))
    assert all(iou(mask, one) <= 0.7 for mask in masks for one in annotated)


@pytest.mark.slow
async def test_passes_of_few_masks_find_every_object_once(client: Client) -> None:
    known: list[BoolArray] = []
    returned = 1
    while returned:
        result = await client.automask_all(IMAGE, point_grids=[GRID], max_masks=7, exclude=known)
        more = masks_of(result)
        assert all(iou(mask, one) <= 0.7 for mask in more for one in known)
        returned = len(more)
        known += more

    assert len(known) > 7
    assert all(found(OBJECTS, known))


@pytest.mark.slow
async def test_result_of_a_complete_pass_leaves_nothing(client: Client) -> None:
    """With the masks as the first pass has returned them."""
    everything = await client.automask_all(IMAGE, point_grids=[GRID])
    assert all(found(OBJECTS, masks_of(everything)))
    masks = [record.mask for record in everything.records]
    more = await client.automask_all(IMAGE, point_grids=[GRID], exclude=masks)
    # Parts of the background are inside its mask, for instance.
    rest = await client.automask_all(IMAGE, point_grids=[GRID], exclude=masks, exclude_parts=True)

    assert not any(found(OBJECTS, masks_of(more)))
    counts = {each.name: (each.in_count, each.out_count) for each in rest.summary.filters}
    assert counts["exclude"][0] == counts["crop_edge"][1] > counts["exclude"][1]
    assert len(rest.records) <= len(more.records)
