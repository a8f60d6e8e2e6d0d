"""The web page in a tab of Chromium: acted on by accessible names, and watched for problems."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
from playwright.async_api import (
    Browser,
    ConsoleMessage,
    Download,
    FilePayload,
    Locator,
    Page,
    Request,
    expect,
)
from samserve.v1 import samserve_pb2

from tests.support.waiting import TIMEOUT_S, until
from tests.web import photos
from tests.web.screen import Screen, marks_in, pixels_of

expect.set_options(timeout=TIMEOUT_S * 1000)

WINDOW = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 800}

_SERVICE = "/samserve.v1.SegmentationService/"
# An upload is preceded by a question whether the server has its embedding.
_EXPECTED = re.compile(r"status of 404 .*/Embed$")

Button = Literal["left", "middle", "right"]
Modifier = Literal["Alt", "Control", "ControlOrMeta", "Meta", "Shift"]


@dataclass
class Traffic:
    """What a tab has asked of the network, and what went wrong in it."""

    origin: str
    calls: list[tuple[str, bytes]] = field(default_factory=list)
    """Method and message of each call."""
    problems: list[str] = field(default_factory=list)
    """Errors in the console, exceptions, failed requests, and requests to other origins."""

    def watch(self, page: Page) -> None:
        page.on("request", self._add_request)
        page.on("requestfailed", self._add_failure)
        page.on("console", self._add_message)
        page.on("pageerror", lambda error: self.problems.append(f"exception: {error}"))

    def count(self, method: str) -> int:
        """Count the calls of a method."""
        return sum(name == method for name, _ in self.calls)

    def predictions(self) -> list[samserve_pb2.PredictRequest]:
        """Return the requests of all calls of Predict."""
        return [
            samserve_pb2.PredictRequest.FromString(body)
            for name, body in self.calls
            if name == "Predict"
        ]

    def answers(self) -> list[samserve_pb2.PredictRequest]:
        """Return the requests that are no previews: those that ask for the logits."""
        return [each for each in self.predictions() if each.include_low_res_logits]

    def _add_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme == "blob":
            return
        if f"{url.scheme}://{url.netloc}" != self.origin:
            self.problems.append(f"request to another origin: {request.url}")
        if url.path.startswith(_SERVICE):
            name = url.path.removeprefix(_SERVICE)
            self.calls.append((name, request.post_data_buffer or b""))

    def _add_failure(self, request: Request) -> None:
        # The page cancels calls.
        if request.failure != "net::ERR_ABORTED":
            self.problems.append(f"failed: {request.method} {request.url}: {request.failure}")

    def _add_message(self, message: ConsoleMessage) -> None:
        text = f"{message.text} {message.location['url']}"
        if message.type == "error" and not _EXPECTED.search(text):
            self.problems.append(f"console: {text}")


class WebPage:
    """One tab with the page."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.traffic = Traffic(address.partition("#")[0].rstrip("/"))
        self.traffic.watch(page)
        self.screen = Screen(page, self.stage)

    async def open(self, address: str = "") -> None:
        """Open the address of the page, or another one of the same server."""
        await self.page.goto(address or self.address)

    def button(self, name: str) -> Locator:
        return self.page.get_by_role("button", name=name, exact=True)

    def region(self, name: str) -> Locator:
        return self.page.get_by_role("region", name=name, exact=True)

    def slider(self, name: str) -> Locator:
        return self.page.get_by_role("slider", name=name)

    @property
    def stage(self) -> Locator:
        """The element with the image."""
        return self.page.get_by_role("application", name="Image")

    @property
    def answers(self) -> Locator:
        return self.region("Answers").get_by_role("radio")

    @property
    def objects(self) -> Locator:
        return self.region("Objects").get_by_role("listitem")

    @property
    def alert(self) -> Locator:
        return self.page.get_by_role("alert")

    async def choose_tool(self, name: str) -> None:
        """Choose a tool with the mouse: its label is clicked, the radio button itself is hidden."""
        tool = self.page.get_by_role("radio", name=name, exact=True)
        await self.page.locator("label").filter(has=tool).click()
        await expect(tool).to_be_checked()

    async def name_is(self, name: str) -> None:
        """Wait until the image of this file is shown."""
        await expect(self.page.locator(".file-name")).to_have_text(name)

    async def open_sample(self, name: str) -> None:
        """Open one of the images of the page and wait until it is encoded."""
        await self.button(f"Sample: {name}").click()
        await self.encoded(*photos.SAMPLE_SIZES[name])

    async def open_file(self, name: str, content: bytes, kind: str = "image/png") -> None:
        """Choose a file."""
        file: FilePayload = {"name": name, "mimeType": kind, "buffer": content}
        chooser = self.page.get_by_label(re.compile("^Choose an"))
        if await self.stage.count() and not await chooser.count():
            await self.button("Open image").click()
        await chooser.set_input_files(file)

    async def open_photo(self, content: bytes, name: str = "photo.png") -> None:
        """Choose an image and wait until it is encoded."""
        kind = "image/jpeg" if name.endswith(".jpg") else "image/png"
        await self.open_file(name, content, kind)
        await self.encoded(*photos.size_of(content))

    async def encoded(self, width: int, height: int) -> None:
        """Wait until an image of this size is shown, and the server has its embedding."""
        # Hidden on small screens.
        size = self.page.locator(".file-size")
        await expect(size).to_have_text(re.compile(rf"^{width}\s.\s{height}$"))
        await expect(
            self.page.get_by_text(re.compile("^(Opening|Encoding) the image"))
        ).to_have_count(0)
        await self.settled()
        await self.screen.fit(width, height)

    async def click(
        self, x: float, y: float, *, button: Button = "left", modifiers: Sequence[Modifier] = ()
    ) -> samserve_pb2.PredictRequest:
        """Click on a pixel of the image, and return the call, which must have this point."""
        async with self.prompting() as sent:
            await self.screen.move_to(x, y)
            for key in modifiers:
                await self.page.keyboard.down(key)
            await self.page.mouse.click(*self.screen.place_of(x, y), button=button)
            for key in modifiers:
                await self.page.keyboard.up(key)
        point = sent[0].prompts[0].points[-1]
        assert np.hypot(point.x - x, point.y - y) <= 1.5 / self.screen.scale + 0.01, (point, x, y)
        return sent[0]

    @asynccontextmanager
    async def prompting(self) -> AsyncIterator[list[samserve_pb2.PredictRequest]]:
        """Yield a list that has the call of the block's click once that has been answered."""
        sent: list[samserve_pb2.PredictRequest] = []
        before = len(self.traffic.answers())
        yield sent
        sent += await until(lambda: self.traffic.answers()[before:])
        await self.settled()

    async def settled(self) -> None:
        """Wait until every call of Predict has ended and its result is shown."""
        await until(self._is_settled)
        await self.page.evaluate(_TWO_FRAMES)

    async def counts(self) -> dict[str, int]:
        """Return the page's own counts of its calls of Predict, by how they ended."""
        text = await self.region("Times").locator(".call-counts").inner_text()
        found = re.findall(r"(\d+)\s+(sent|answered|cancelled|failed)", text)
        return {name: int(number) for number, name in found}

    async def until_counted(self, name: str, least: int) -> None:
        """Wait until a count is at least this."""

        async def has_enough() -> bool:
            return (await self.counts())[name] >= least

        await until(has_enough)

    async def places_of_marks(self, ratio: int = 1) -> list[tuple[float, float]]:
        """Return the centres of the marks of `photos.marked` on the screen, from left to right.

        *ratio* is the number of the screen's pixels per pixel of the window.
        """
        box = await self.stage.bounding_box()
        assert box is not None
        found = marks_in(await self.pixels(), photos.MARK)
        return [(box["x"] + x / ratio, box["y"] + y / ratio) for x, y in found]

    async def _is_settled(self) -> bool:
        counts = await self.counts()
        return counts["sent"] == counts["answered"] + counts["cancelled"] + counts["failed"]

    async def download(self, name: str) -> tuple[str, bytes]:
        """Export by a button; return the file's name and content."""
        async with self.page.expect_download() as waiting:
            await self.region("Export").get_by_role("button", name=name, exact=True).click()
        download: Download = await waiting.value
        return download.suggested_filename, (await download.path()).read_bytes()

    async def pixels(self) -> npt.NDArray[np.uint8]:
        """Return what the stage shows, uint8 ``[h, w, 3]``."""
        return pixels_of(await self.stage.screenshot())

    def expect_problems(self, pattern: str) -> None:
        """Forget problems that a test has caused; there must be one."""
        expected = [each for each in self.traffic.problems if re.search(pattern, each)]
        assert expected, self.traffic.problems
        self.traffic.problems[:] = [each for each in self.traffic.problems if each not in expected]


_TWO_FRAMES = (
    "() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))"
)


@asynccontextmanager
async def opened(
    browser: Browser, address: str, *, wait: bool = True, **options: Any
) -> AsyncIterator[WebPage]:
    """Open an address in a browser of its own; nothing may go wrong while the block runs.

    Without *wait*, `WebPage.open` opens it.
    """
    options = {"viewport": WINDOW, "color_scheme": "dark", "accept_downloads": True, **options}
    context = await browser.new_context(**options)
    context.set_default_timeout(TIMEOUT_S * 1000)
    try:
        page = WebPage(await context.new_page(), address)
        if wait:
            await page.open()
        yield page
        assert page.traffic.problems == [], page.traffic.problems
    except Exception:
        for each in context.pages:
            print(await each.locator("body").aria_snapshot())
        raise
    finally:
        await context.close()
