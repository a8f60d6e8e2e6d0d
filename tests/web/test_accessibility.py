"""The page without a mouse, with a screen reader, in both themes and on small screens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.async_api import Browser, Locator, expect
from samserve.app import Running

from tests.examples.programs import ROOT
from tests.security.credentials import KeyFile
from tests.support.waiting import until
from tests.web import photos
from tests.web.page import PHONE, WINDOW, WebPage, opened
from tests.web.serving import address_of, web_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

AXE = (ROOT / "web" / "node_modules" / "axe-core" / "axe.min.js").read_text
SERIOUS = ("serious", "critical")


async def violations(page: WebPage) -> list[str]:
    """Return the serious violations of accessibility that axe-core finds in the present state."""
    if not await page.page.evaluate("() => 'axe' in window"):
        await page.page.evaluate(f"() => {{ {AXE()}; window.axe = axe }}")
    # Not while colours change.
    await page.page.evaluate(
        "() => Promise.all(document.getAnimations().map((each) => each.finished.catch(() => {})))"
    )
    found: dict[str, Any] = await page.page.evaluate(
        "() => axe.run(document, { resultTypes: ['violations'] })"
    )
    return [
        f"{each['id']} ({each['impact']}): {node['target']} {node['failureSummary']}"
        for each in found["violations"]
        if each["impact"] in SERIOUS
        for node in each["nodes"]
    ]


async def check(page: WebPage, state: str) -> None:
    found = await violations(page)
    assert found == [], f"{state}: {found}"


@pytest.mark.parametrize(
    ("theme", "window"),
    [("dark", WINDOW), ("light", PHONE)],
    ids=["dark", "light_and_small"],
)
async def test_axe_finds_nothing_serious_in_any_state(
    chromium: Browser, service: Running, theme: str, window: dict[str, int]
) -> None:
    options = {"color_scheme": theme, "viewport": window}
    async with opened(chromium, address_of(service), **options) as page:
        await page.button("Sample: coins").wait_for()
        await check(page, "no image")
        await page.open_sample("coins")
        await check(page, "an image")
        await page.click(155, 51)
        await check(page, "answers")
        await page.click(40, 150, button="right")
        await page.button("New object").click()
        await page.click(216, 52)
        await page.button("Show object 1").click()
        await check(page, "objects")
        await page.button("Keyboard shortcuts").click()
        await check(page, "shortcuts")
        await page.page.keyboard.press("Escape")
        await page.page.get_by_label("Points per side").select_option("8")
        await page.button("Segment everything").click()
        await expect(page.region("Everything")).to_contain_text("masks shown")
        await check(page, "everything")
        await page.page.get_by_role("switch", name="Decode in the browser").click(force=True)
        await expect(page.page.locator("#decoding-state")).to_have_text(re.compile("^browser"))
        await page.open_file("notes.txt", b"text", "text/plain")
        await expect(page.alert).to_be_visible()
        await check(page, "an error")
        await page.button("Open image").click()
        await check(page, "choosing another image")


async def test_axe_finds_nothing_serious_before_the_page_may_be_used(
    chromium: Browser, service: Running, tmp_path: Path
) -> None:
    async with opened(chromium, service.http_address) as page:
        await expect(page.alert).to_be_visible()
        await check(page, "no session")
        page.expect_problems("status of 401")
    keys = KeyFile(tmp_path / "keys.toml")
    keys.add("someone", "predict")
    async with (
        web_service(auth={"api_keys_file": keys.path}) as other,
        opened(chromium, other.http_address) as page,
    ):
        dialog = page.page.get_by_role("dialog", name="Sign in")
        await dialog.get_by_label("API key or token").fill("wrong")
        await page.page.keyboard.press("Enter")
        await expect(dialog.get_by_role("alert")).to_be_visible()
        await check(page, "sign in")
        page.expect_problems("status of 401")


async def tab_to(page: WebPage, target: Locator) -> None:
    """Press Tab until the focus is there."""
    for _ in range(60):
        if await target.evaluate("(element) => element === document.activeElement"):
            return
        await page.page.keyboard.press("Tab")
    raise AssertionError(f"the focus does not reach {target}")


async def press(page: WebPage, *keys: str) -> None:
    for key in keys:
        await page.page.keyboard.press(key)


async def open_sample_by_keyboard(page: WebPage) -> None:
    await tab_to(page, page.button("Sample: coins"))
    await press(page, "Enter")
    await page.encoded(*photos.SAMPLE_SIZES["coins"])
    await tab_to(page, page.stage)


async def test_points_and_boxes_are_set_with_the_keyboard_alone(page: WebPage) -> None:
    await open_sample_by_keyboard(page)
    # The crosshair begins in the centre.
    await press(page, "ArrowLeft", "ArrowUp", "Shift+ArrowLeft", "Shift+ArrowLeft")
    async with page.prompting() as sent:
        await press(page, "Enter")
    first = sent[0].prompts[0].points[0]
    assert (first.label, first.x < 192, first.y < 151.5) == (1, True, True)
    await expect(live_text(page)).to_contain_text(re.compile(r"answer .* score", re.IGNORECASE))
    await press(page, *["Shift+ArrowRight"] * 6)
    async with page.prompting() as sent:
        await press(page, "Shift+Enter")
    points = sent[0].prompts[0].points
    assert [each.label for each in points] == [1, 2]
    assert points[1].x - first.x > 20

    await press(page, "Control+z")
    await page.settled()
    await expect(page.answers).to_have_count(3)
    await press(page, "2")
    await expect(page.answers.nth(1)).to_be_checked()
    await press(page, "n", "r")
    await expect(page.page.get_by_role("radio", name="Box", exact=True)).to_be_checked()
    # One corner, and the opposite one.
    await press(page, "Enter", *["Shift+ArrowRight", "Shift+ArrowDown"] * 3)
    async with page.prompting() as sent:
        await press(page, "Enter")
    box = sent[0].prompts[0].box
    assert box.x_max > box.x_min
    assert box.y_max > box.y_min
    await expect(page.objects).to_have_count(2)


async def test_panels_are_used_with_the_keyboard_alone(page: WebPage) -> None:
    await open_sample_by_keyboard(page)
    async with page.prompting():
        await press(page, "Enter")
    name = page.page.get_by_label("Name of object 1")
    await tab_to(page, name)
    await press(page, "Control+a")
    await page.page.keyboard.type("the first")
    await press(page, "Enter")
    await expect(name).to_have_value("the first")
    grid = page.page.get_by_label("Points per side")
    await tab_to(page, grid)
    await press(page, "ArrowUp")
    await expect(grid).to_have_value("8")
    await tab_to(page, page.button("Segment everything"))
    await press(page, "Enter")
    await expect(page.region("Everything")).to_contain_text("masks shown")
    slider = page.slider("Stability at least")
    await tab_to(page, slider)
    await press(page, "End")
    await expect(slider).to_have_value("1")
    await tab_to(page, page.region("Export").get_by_role("button", name="COCO JSON"))
    async with page.page.expect_download() as download:
        await press(page, "Enter")
    assert (await download.value).suggested_filename == "coins-coco.json"


def live_text(page: WebPage) -> Locator:
    """Return what a screen reader says about the image."""
    return page.page.locator("[aria-live=polite]").first


async def test_focus_is_visible_and_dialogs_return_it(page: WebPage) -> None:
    await page.button("Sample: coins").wait_for()
    button = page.button("Keyboard shortcuts")
    await button.focus()
    await page.page.keyboard.press("Enter")
    dialog = page.page.get_by_role("dialog", name="Keyboard shortcuts")
    await expect(dialog).to_be_visible()
    # The page behind it cannot be reached.
    for _ in range(5):
        await page.page.keyboard.press("Tab")
        assert await dialog.evaluate(
            "(each) => [each, document.body].some((own) => own === document.activeElement)"
            " || each.contains(document.activeElement)"
        )
    await page.page.keyboard.press("Escape")
    await expect(dialog).to_have_count(0)
    await expect(button).to_be_focused()
    outline = await button.evaluate("(each) => getComputedStyle(each).outlineStyle")
    assert outline != "none"


async def test_small_screen_with_fingers(chromium: Browser, service: Running) -> None:
    options = {"viewport": PHONE, "has_touch": True, "device_scale_factor": 2}
    async with opened(chromium, address_of(service), **options) as page:
        await page.button("Sample: coins").tap()
        await page.encoded(*photos.SAMPLE_SIZES["coins"])
        width = await page.page.evaluate("() => document.documentElement.scrollWidth")
        assert width <= PHONE["width"]
        # The panels are below the image.
        stage, panel = await page.stage.bounding_box(), await page.region("Objects").bounding_box()
        assert stage is not None
        assert panel is not None
        assert panel["y"] >= stage["y"] + stage["height"]
        assert stage["height"] > 200

        async with page.prompting() as sent:
            await page.page.touchscreen.tap(*page.screen.place_of(155, 51))
        point = sent[0].prompts[0].points[0]
        assert np.hypot(point.x - 155, point.y - 51) < 2
        await expect(page.objects).to_have_count(1)
        small = await page.page.evaluate(SMALL_TARGETS)
        assert small == []


SMALL_TARGETS = """() =>
  [...document.querySelectorAll("button, select, input:not([type=range]), label")]
    .filter((each) => each.checkVisibility() && !each.closest(".stage-hidden"))
    .filter((each) => each.tagName !== "LABEL" && !each.closest("label"))
    .map((each) => [each, each.getBoundingClientRect()])
    .filter(([, { width, height }]) => width > 1 && (width < 40 || height < 40))
    .map(([each, { width, height }]) =>
      `${each.getAttribute("aria-label") ?? each.textContent}: ${width} x ${height}`)
"""


async def test_two_fingers_zoom_and_move_the_image(chromium: Browser, service: Running) -> None:
    options = {"viewport": PHONE, "has_touch": True}
    async with opened(chromium, address_of(service), **options) as page:
        await page.open_photo(photos.marked([(200, 100), (400, 300)]))
        (x, y), (right, _) = await page.places_of_marks()
        session = await page.page.context.new_cdp_session(page.page)

        async def touch(kind: str, *points: tuple[float, float]) -> None:
            touches = [{"x": px, "y": py, "id": n} for n, (px, py) in enumerate(points)]
            parameters = {"type": kind, "touchPoints": touches}
            await session.send("Input.dispatchTouchEvent", parameters)

        await touch("touchStart", (x - 20, y), (x + 20, y))
        for step in range(1, 6):
            await touch("touchMove", (x - 20 - 6 * step, y), (x + 20 + 6 * step, y))
        await touch("touchEnd")

        async def distance_grew() -> bool:
            places = await page.places_of_marks()
            return len(places) < 2 or places[1][0] - places[0][0] > 1.5 * (right - x)

        await until(distance_grew)
        assert page.traffic.answers() == []
