"""Where the image is on the screen: a click is at the pixel that is seen there."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import Browser
from samserve.app import Running

from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.serving import address_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]


@pytest.mark.parametrize("ratio", [1, 2])
async def test_click_after_zoom_and_pan_is_at_the_pixel_that_is_seen_there(
    chromium: Browser, service: Running, ratio: int
) -> None:
    marks = [(100, 60), (300, 200), (520, 330)]
    image = photos.marked(marks)
    async with opened(chromium, address_of(service), device_scale_factor=ratio) as page:
        await page.open_photo(image)
        await check_mark(page, marks, ratio)
        for key in ("+", "+"):
            await page.stage.press(key)
        await check_mark(page, [marks[1]], ratio)
        place = await page.places_of_marks(ratio)
        await page.page.mouse.move(*place[0])
        await page.page.mouse.wheel(0, -300)
        await check_mark(page, [marks[1]], ratio)
        # Dragged with the middle button, with the space bar, and with the tool.
        await page.page.mouse.down(button="middle")
        await page.page.mouse.move(place[0][0] + 60, place[0][1] - 40)
        await page.page.mouse.up(button="middle")
        await check_mark(page, [marks[1]], ratio)
        await page.stage.focus()
        await page.page.keyboard.down("Space")
        await page.page.mouse.down()
        await page.page.mouse.move(place[0][0] + 10, place[0][1] + 30)
        await page.page.mouse.up()
        await page.page.keyboard.up("Space")
        await check_mark(page, [marks[1]], ratio)
        await page.button("Fit").click()
        await check_mark(page, marks, ratio)


async def check_mark(page: WebPage, marks: list[tuple[int, int]], ratio: int) -> None:
    """Click on the marks where they are on the screen: the calls must have their positions."""
    await page.page.mouse.move(2, 2)
    if await page.button("Clear prompts").is_enabled():
        await page.button("Clear prompts").click()
    await page.settled()
    places = await page.places_of_marks(ratio)
    assert len(places) == len(marks)
    for (x, y), place in zip(marks, places, strict=True):
        async with page.prompting() as sent:
            await page.page.mouse.click(*place)
        point = sent[0].prompts[0].points[-1]
        assert np.hypot(point.x - x, point.y - y) < 1, (point, x, y)
        await page.button("Clear prompts").click()


async def test_photo_with_an_orientation_is_clicked_as_it_is_shown(
    service: Running, page: WebPage
) -> None:
    upright = Image.open(BytesIO(photos.marked([(120, 330)], width=300, height=400)))
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned to the right by the viewer.
    buffer = BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(
        buffer, "JPEG", quality=95, subsampling=0, exif=exif
    )
    assert photos.size_of(buffer.getvalue()) == (300, 400)
    await page.open_photo(buffer.getvalue(), "turned.jpg")

    await check_mark(page, [(120, 330)], 1)
