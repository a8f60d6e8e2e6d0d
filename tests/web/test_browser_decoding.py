"""The switch that lets the browser decode: no call for a click, the same masks, or a reason."""

from __future__ import annotations

import re

import numpy as np
import pytest
from playwright.async_api import Browser, Locator, expect
from samserve.app import Running
from samserve.client import Client, Prompt

from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.photos import intersection_over_union
from tests.web.serving import OTHER_MODEL, address_of, started, web_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]


def state_of(page: WebPage) -> Locator:
    """Return the text of where prompts are decoded."""
    return page.page.locator("#decoding-state")


async def switch(page: WebPage) -> None:
    """Switch with the mouse: the label is clicked, the box itself is hidden."""
    control = page.page.get_by_role("switch", name="Decode in the browser")
    await page.page.locator("label").filter(has=control).click()


async def click_in_browser(page: WebPage, x: float, y: float) -> None:
    await page.page.mouse.click(*page.screen.place_of(x, y))
    await expect(page.region("Times").get_by_role("row", name=re.compile("^Click"))).to_be_visible()
    await page.settled()


async def test_clicks_are_answered_without_a_call_and_with_the_same_masks(
    service: Running, page: WebPage
) -> None:
    await page.open_sample("coins")
    calls = started(service, "Predict")
    await switch(page)
    await expect(state_of(page)).to_have_text("browser")
    # The embedding is downloaded once.
    assert page.traffic.count("GetEmbedding") == 1
    await page.screen.move_to(270, 120)
    await page.until_counted("answered", 1)
    await click_in_browser(page, 155, 51)
    await expect(page.answers).to_have_count(3)
    row = page.region("Times").get_by_role("row", name=re.compile("^Click browser"))
    await expect(row).to_be_visible()
    await page.page.mouse.click(*page.screen.place_of(20, 20), button="right")
    await expect(page.objects).to_contain_text("2 points")
    await page.settled()
    refined = photos.mask_of((await page.download("Masks (PNG)"))[1])
    await page.button("Undo").click()
    await expect(page.answers).to_have_count(3)
    await page.settled()
    mask = photos.mask_of((await page.download("Masks (PNG)"))[1])

    assert page.traffic.count("Predict") == 0
    assert page.traffic.count("GetEmbedding") == 1
    assert started(service, "Predict") == calls
    async with Client(service.address) as client:
        first = Prompt(points=[(155, 51)])
        found = await client.predict(
            photos.sample("coins"), [first], multimask="all", low_res_logits=True
        )
        best = max(found.results[0], key=lambda each: each.predicted_iou)
        both = Prompt(points=[(155, 51), (20, 20, 0)], mask=best.low_res_logits)
        expected = (await client.predict(photos.sample("coins"), [both])).results[0][0]
    assert intersection_over_union(mask, best.array) >= 0.999
    assert intersection_over_union(refined, expected.array) >= 0.999

    await switch(page)
    await expect(state_of(page)).to_have_text("server")
    await page.button("New object").click()
    request = await page.click(216, 52)
    assert len(request.prompts[0].points) == 1


async def test_another_image_and_model_are_decoded_in_the_browser_too(
    service: Running, page: WebPage
) -> None:
    await page.open_sample("coins")
    await switch(page)
    await expect(state_of(page)).to_have_text("browser")
    await page.button("Open image").click()
    await page.open_sample("coffee")
    await expect(state_of(page)).to_have_text("browser")
    await click_in_browser(page, 300, 160)
    await expect(page.answers).to_have_count(3)
    await page.page.get_by_label("Model").select_option(OTHER_MODEL)
    await page.encoded(600, 400)
    await expect(state_of(page)).to_have_text("browser")
    await click_in_browser(page, 300, 160)
    await expect(page.answers).to_have_count(3)

    assert page.traffic.count("Predict") == 0
    assert page.traffic.count("GetEmbedding") == 3


async def test_server_decodes_with_a_reason_where_the_browser_cannot(chromium: Browser) -> None:
    files = {"get_enabled": False}
    async with (
        web_service(embedding_files=files) as service,
        opened(chromium, address_of(service)) as page,
    ):
        await page.open_sample("coins")
        await switch(page)
        await expect(page.page.get_by_role("banner")).to_contain_text(
            re.compile("The server decodes, as the browser cannot: GetEmbedding is not enabled")
        )
        # The text takes space from the image.
        await page.screen.fit(*photos.SAMPLE_SIZES["coins"])
        await page.click(155, 51)
        await expect(page.answers).to_have_count(3)


async def test_scores_are_those_of_the_server(service: Running, page: WebPage) -> None:
    await page.open_sample("coffee")
    await page.click(300, 160)
    names = [await each.get_attribute("aria-label") for each in await page.answers.all()]
    await page.button("New object").click()
    await switch(page)
    await expect(state_of(page)).to_have_text("browser")
    await click_in_browser(page, 300, 160)
    await expect(page.objects).to_have_count(2)
    await expect(page.answers).to_have_count(3)

    again = [await each.get_attribute("aria-label") for each in await page.answers.all()]
    scores = [[float((name or "0").rsplit(" ", 1)[1]) for name in each] for each in (names, again)]
    np.testing.assert_allclose(scores[0], scores[1], atol=0.011)
