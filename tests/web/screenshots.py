"""Write the screenshots of README: ``python -m tests.web.screenshots``.

They show the built page (``make web/dist/index.html``) with the default model.
"""

from __future__ import annotations

import asyncio
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.async_api import async_playwright, expect

from tests.examples.browser import launch
from tests.examples.programs import ROOT
from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.photos import centre_of
from tests.web.serving import address_of, web_service

FOLDER = ROOT / "docs" / "images"
WINDOW = {"width": 1440, "height": 900}
COINS = {"coin A": 0, "coin B": 5, "coin C": 11, "coin D": 12}
"""The names of objects, and the coins of `photos.coin_masks`."""


async def main() -> None:
    """Write both files."""
    async with async_playwright() as playwright, web_service() as service:
        browser = await launch(playwright)
        async with opened(browser, address_of(service), viewport=WINDOW) as page:
            await page.open_sample("coins")
            await click_coins(page)
            await save(page, FOLDER / "web-click.png")
            await page.page.reload()
            await page.open_sample("coins")
            await segment_everything(page)
            await save(page, FOLDER / "web-everything.png")
        await browser.close()


async def click_coins(page: WebPage) -> None:
    """Begin an object with each click, in the browser's own decoder."""
    await page.page.get_by_role("switch", name="Decode in the browser").click(force=True)
    await expect(page.page.locator("#decoding-state")).to_have_text("browser")
    for number, (name, index) in enumerate(COINS.items(), 1):
        if number > 1:
            await page.button("New object").click()
        await page.screen.move_to(*centre_of(photos.coin_masks()[index]))
        await page.page.mouse.down()
        await page.page.mouse.up()
        await expect(page.answers).to_have_count(3)
        await page.settled()
        field = page.page.get_by_role("textbox", name=f"Name of object {number}")
        await field.fill(name)
        await field.press("Enter")


async def segment_everything(page: WebPage) -> None:
    """Show the masks that are likely to be objects."""
    await page.button("Segment everything").click()
    await expect(page.region("Everything")).to_contain_text("masks shown")
    await page.slider("Predicted IoU at least").fill("0.85")
    await page.slider("Stability at least").fill("0.9")
    await page.settled()


async def save(page: WebPage, path: Path) -> None:
    """Write what the window shows, with few colours."""
    await page.page.mouse.move(2, 2)
    await page.page.wait_for_timeout(500)
    with Image.open(BytesIO(await page.page.screenshot())) as image:
        colours = image.convert("RGB")
    palette = colours.quantize(256, Image.Quantize.MAXCOVERAGE)
    colours.quantize(palette=palette).save(path, optimize=True)


if __name__ == "__main__":
    asyncio.run(main())
