"""What only the client for browsers has: a page, origins, and retries without gRPC."""

from __future__ import annotations

import asyncio
import base64
import re
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Page, Route, expect
from samserve.app import running
from samserve.client import Client, Prompt

from tests.conftest import serving_models, settings_with
from tests.examples.browser import BrowserClient
from tests.examples.expected import PHOTO, handled
from tests.support.waiting import TIMEOUT_S, until

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]
expect.set_options(timeout=TIMEOUT_S * 1000)
POINT = (200, 120)


async def open_photo(page: Page, browser: BrowserClient, server: str) -> None:
    """Open the page and choose the photo."""
    await page.goto(f"{browser.origin}/index.html?server={server}")
    image = {"name": "photo.jpg", "mimeType": "image/jpeg", "buffer": PHOTO}
    await page.locator("input[name=image]").set_input_files(image)


async def click(page: Page, x: int, y: int, **options: Any) -> tuple[float, float]:
    """Click near a pixel of the image, which is not scaled; return the exact position."""
    canvas = page.locator("canvas")
    clicked = canvas.evaluate(
        """(canvas) => new Promise((resolve) => canvas.addEventListener("click", (event) => {
             const box = canvas.getBoundingClientRect();
             resolve([event.clientX - box.left, event.clientY - box.top]);
           }, { once: true }))"""
    )
    listening = asyncio.ensure_future(clicked)
    await canvas.click(position={"x": x, "y": y}, **options)
    x, y = await listening
    return x, y


async def pixels_of(page: Page) -> np.ndarray:
    """Return the content of the canvas, uint8 ``[h, w, 3]``."""
    url = await page.locator("canvas").evaluate("(canvas) => canvas.toDataURL()")
    with Image.open(BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB"))


async def test_click_draws_the_mask_over_the_image(browser: BrowserClient) -> None:
    async with serving_models(**browser.sections) as (service, _), browser.page() as page:
        status = page.locator("#status")
        await open_photo(page, browser, browser.target(service))
        await expect(status).to_have_text("451 x 300, ready")
        before = await pixels_of(page)
        point = await click(page, *POINT)
        await expect(status).to_have_text(re.compile("pixels, predicted IoU"))
        text = await status.inner_text()
        after = await pixels_of(page)
        await click(page, 20, 20, modifiers=["Shift"])
        await expect(status).not_to_have_text(text)
        await expect(status).to_have_text(re.compile("pixels, predicted IoU"))
        async with Client(service.address) as other:
            prompt = Prompt(points=[point])
            found = await other.predict(PHOTO, [prompt], multimask="all")

    best = max(found.results[0], key=lambda mask: mask.predicted_iou)
    assert text == f"{best.area} pixels, predicted IoU {best.predicted_iou:.2f}"
    changed = (before != after).any(axis=2)
    # The point is drawn over the mask.
    y, x = np.ogrid[: changed.shape[0], : changed.shape[1]]
    away = np.hypot(x - POINT[0], y - POINT[1]) > 8
    assert changed.shape == best.array.shape
    np.testing.assert_array_equal(changed & away, best.array & away)


async def test_automask_shows_progress_and_is_cancelled(browser: BrowserClient) -> None:
    async with serving_models(**browser.sections) as (service, _), browser.page() as page:
        await open_photo(page, browser, browser.target(service))
        await expect(page.locator("#status")).to_have_text("451 x 300, ready")
        await page.get_by_role("button", name="Segment everything").click()
        await expect(page.locator("progress")).to_be_visible()
        await page.wait_for_function("document.querySelector('progress').value > 0")
        await page.get_by_role("button", name="Cancel").click()
        await expect(page.locator("#status")).to_have_text("Cancelled")
        await until(lambda: handled(service, "AutoMask", grpc_code="CANCELLED") == 1)
        await expect(page.locator("progress")).to_be_hidden()


async def test_errors_are_shown(browser: BrowserClient) -> None:
    sections = {**browser.sections, "limits": {"max_image_pixels": 100}}
    async with running(settings_with(**sections)) as service, browser.page() as page:
        await open_photo(page, browser, browser.target(service))
        await expect(page.locator("#status.error")).to_contain_text(
            "image.encoded: has 135300 pixels"
        )


async def test_server_that_does_not_allow_the_origin_is_unavailable(
    browser: BrowserClient,
) -> None:
    sections = {"http": {**browser.sections["http"], "allowed_origins": "http://127.0.0.1:1"}}
    async with (
        running(settings_with(**sections)) as service,
        browser.scenario("models", browser.target(service)) as result,
    ):
        assert result["error"]["code"] == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("failures", "code"), [pytest.param(3, None, id="3"), pytest.param(9, "UNAVAILABLE", id="9")]
)
async def test_unavailable_server_is_called_up_to_four_times(
    browser: BrowserClient, failures: int, code: str | None
) -> None:
    calls = 0

    async def answer(route: Route) -> None:
        nonlocal calls
        calls += 1
        await (route.abort() if calls <= failures else route.continue_())

    async with running(settings_with(**browser.sections)) as service, browser.page() as page:
        await page.route("**/samserve.v1.SegmentationService/ListModels", answer)
        result = await browser.run(page, "models", browser.target(service))

    assert (result["error"] and result["error"]["code"], calls) == (code, 4)
