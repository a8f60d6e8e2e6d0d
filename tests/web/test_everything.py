"""Segmenting everything in an image: progress, cancelling, filtering, and keeping."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from playwright.async_api import expect
from samserve.app import Running
from samserve.client import Client

from tests.support.waiting import until
from tests.web import photos
from tests.web.page import WebPage
from tests.web.serving import handled, in_flight

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]


async def segment(page: WebPage, side: int = 8) -> None:
    """Segment everything, and wait for the result."""
    await page.page.get_by_label("Points per side").select_option(str(side))
    await page.button("Segment everything").click()
    await expect(page.region("Everything")).to_contain_text("masks shown")


def shown_of(text: str) -> tuple[int, int]:
    """Return how many masks are shown, and how many there are."""
    found = re.search(r"(\d+) of (\d+) masks shown", text)
    assert found
    return int(found[1]), int(found[2])


async def test_run_is_cancelled_on_the_server_too(service: Running, page: WebPage) -> None:
    await page.open_sample("coffee")
    cancelled = handled(service, "AutoMask", grpc_code="CANCELLED")
    await page.page.get_by_label("Points per side").select_option("32")
    await page.button("Segment everything").click()
    progress = page.page.get_by_role("progressbar")
    await expect(progress).to_be_visible()
    await until(lambda: progress.evaluate("(bar) => bar.value > 0"))
    await expect(page.region("Everything")).to_contain_text(re.compile(r"left|almost"))
    await page.region("Everything").get_by_role("button", name="Cancel").click()

    await expect(progress).to_have_count(0)
    await until(lambda: handled(service, "AutoMask", grpc_code="CANCELLED") == cancelled + 1)
    await until(lambda: in_flight(service, "AutoMask") == 0)
    await expect(page.button("Segment everything")).to_be_enabled()


async def test_sliders_filter_what_was_found_without_another_call(
    service: Running, page: WebPage
) -> None:
    await page.open_sample("coins")
    await segment(page)
    # They begin at the model's thresholds.
    for name in ("Predicted IoU at least", "Stability at least"):
        assert float(await page.slider(name).input_value()) > 0.5
        await page.slider(name).fill("0")
    async with Client(service.address) as client:
        found = await client.automask_all(
            photos.sample("coins"),
            points_per_side=8,
            pred_iou_thresh=0.0,
            stability_score_thresh=0.0,
        )
    masks = [record.mask for record in found.records]
    region, calls = page.region("Everything"), len(page.traffic.calls)

    async def shown() -> int:
        count, total = shown_of(await region.inner_text())
        assert total == len(masks)
        return count

    assert await shown() == len(masks)
    before = await page.pixels()
    await page.slider("Predicted IoU at least").fill("0.8")
    assert await shown() == sum(mask.predicted_iou >= 0.8 for mask in masks)
    await page.slider("Stability at least").fill("0.9")
    both = [mask for mask in masks if mask.predicted_iou >= 0.8 and mask.stability_score >= 0.9]
    assert await shown() == len(both)
    # Its scale is the cube root.
    await page.slider("Area at least").fill("0.25")
    pixels = masks[0].size[0] * masks[0].size[1]
    kept = [mask for mask in both if mask.area >= 0.25**3 * pixels]
    assert await shown() == len(kept)
    assert 0 < len(kept) < len(both) < len(masks)
    assert len(page.traffic.calls) == calls
    await until(lambda: _differs(page, before))

    await page.button("Keep as objects").click()
    await expect(page.objects).to_have_count(len(kept))
    _, content = await page.download("COCO JSON")
    areas = [each["area"] for each in json.loads(content)["annotations"]]
    assert areas == [mask.area for mask in kept]
    # One step of the history.
    await page.button("Undo").click()
    await expect(page.objects).to_have_count(0)


async def test_click_keeps_the_mask_that_is_seen_there(page: WebPage) -> None:
    await page.open_sample("coins")
    await page.page.mouse.move(2, 2)
    before = await page.pixels()
    await segment(page, 16)
    await until(lambda: _differs(page, before))
    calls = len(page.traffic.calls)
    coin = photos.coin_masks()[0]
    await page.page.mouse.click(*page.screen.place_of(*photos.centre_of(coin)))
    await expect(page.objects).to_have_count(1)

    _, content = await page.download("Masks (PNG)")
    assert photos.intersection_over_union(photos.mask_of(content), coin) > 0.7
    assert len(page.traffic.calls) == calls


async def _differs(page: WebPage, before: np.ndarray) -> bool:
    return bool((before != await page.pixels()).any())


async def test_everything_is_shown_over_the_image_until_it_is_discarded(page: WebPage) -> None:
    await page.open_sample("coins")
    await page.page.mouse.move(2, 2)
    await page.settled()
    before = await page.pixels()
    await segment(page)
    await until(lambda: _differs(page, before))
    covered = (before != await page.pixels()).any(axis=2)
    assert page.screen.in_image(covered, 303, 384).mean() > 0.3

    await page.button("Discard").click()
    await page.settled()
    np.testing.assert_array_equal(before, await page.pixels())
