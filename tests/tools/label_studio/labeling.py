"""Label Studio's labeling page in Chromium, as an annotator uses it."""

from __future__ import annotations

from typing import Any

from playwright.async_api import Page

from harness.label_studio import USER, LabelStudioServer
from tests.support.waiting import TIMEOUT_S

_STORE = "window.dataManager.lsf.lsf"
_SELECTED = f"{_STORE}.annotationStore.selected"
_READY = (
    "() => window.dataManager?.lsf?.lsf?.annotationStore?.selected"
    f" && {_SELECTED}.objects[0].isReady"
)
_WAIT_MS = TIMEOUT_S * 1000


class Labeling:
    """A page with a task of a project; positions are pixels of the image."""

    def __init__(self, page: Page, server: LabelStudioServer, size: tuple[int, int]) -> None:
        self.page = page
        self._server = server
        self._height, self._width = size

    async def log_in(self) -> None:
        """Log in as the user."""
        await self.page.goto(f"{self._server.url}/user/login/")
        await self.page.fill("#email", USER)
        await self.page.fill("#password", self._server.password)
        await self.page.click("button[type=submit]")
        await self.page.wait_for_url(f"{self._server.url}/**")

    async def open(self, project: int, task: int) -> None:
        """Open a task, and switch auto-annotation on."""
        await self.show(project, task)
        toggle = self.page.get_by_label("Auto-Annotation")
        if not await toggle.is_checked():
            await self.page.get_by_text("Auto-Annotation").click()

    async def show(self, project: int, task: int) -> None:
        """Open a task; its annotation begins as its prediction."""
        await self.page.goto(f"{self._server.url}/projects/{project}/data?task={task}")
        await self.page.wait_for_function(_READY, timeout=_WAIT_MS)
        await self.page.locator(".lsf-image-view canvas, .konvajs-content canvas").first.wait_for()

    async def relabel_first(self, control: str, label: str) -> None:
        """Change the label of the first region of the list."""
        await self.page.locator(".lsf-outliner-item").first.click()
        await self._label(control, label)
        await self.page.wait_for_function(
            f"(label) => {_SELECTED}.regions.some((each) => each.labels.includes(label))",
            arg=label,
            timeout=_WAIT_MS,
        )
        await self.page.keyboard.press("Escape")

    async def draw_box(
        self, control: str, label: str, x0: float, y0: float, x1: float, y1: float
    ) -> None:
        """Draw a rectangle by hand."""
        before = len(await self.regions())
        await self._label(control, label)
        await self.page.mouse.move(*await self._on_screen(x0, y0))
        await self.page.mouse.down()
        await self.page.mouse.move(*await self._on_screen((x0 + x1) / 2, (y0 + y1) / 2))
        await self.page.mouse.move(*await self._on_screen(x1, y1))
        await self.page.mouse.up()
        await self.page.wait_for_function(
            f"(before) => {_SELECTED}.regions.length === before + 1", arg=before, timeout=_WAIT_MS
        )

    async def _label(self, control: str, label: str) -> None:
        """Click on a label of a control."""
        names = await self.page.evaluate(
            f"() => {_SELECTED}.toNames.get('image').map((each) => each.name)"
        )
        group = self.page.locator(".lsf-labels").nth(names.index(control))
        await group.locator(".lsf-label").filter(has_text=label).first.click()

    async def keep_label(self) -> None:
        """Keep labels selected after each click, as the settings of the interface offer."""
        await self.page.get_by_test_id("bottombar-settings-button").click()
        dialog = self.page.get_by_role("dialog")
        row = dialog.get_by_text("Keep label selected after creating a region")
        # Not by the mouse: the dialog moves while it opens.
        switch = row.locator("xpath=ancestor::*[.//input][1]").locator("input").first
        await switch.dispatch_event("click")
        script = f"() => {_STORE}.settings.continuousLabeling"
        await self.page.wait_for_function(script, timeout=_WAIT_MS)
        await dialog.get_by_label("Close").click()
        await dialog.wait_for(state="hidden")

    async def choose(self, control: str, label: str, tool: str) -> None:
        """Choose a label of a control, and its smart tool, such as ``key-point-tool``."""
        script = f"(name) => {_SELECTED}.names.get(name).children.map((each) => each.value)"
        labels = await self.page.evaluate(script, control)
        groups = self.page.locator(".lsf-labels")
        names = await self.page.evaluate(
            f"() => {_SELECTED}.toNames.get('image').map((each) => each.name)"
        )
        shown = groups.nth(names.index(control)).locator(".lsf-label")
        smart = self.page.locator(".lsf-toolbar__group > .lsf-tool_smart")
        await smart.hover()
        await smart.locator(f"[aria-label={tool}]").click()
        # A click on the label that is selected would end its selection.
        if not await self._is_selected(control, label):
            await shown.nth(labels.index(label)).click()
        assert await self._is_selected(control, label)

    async def click(self, x: float, y: float) -> dict[str, Any]:
        """Click on a position of the image, and return Label Studio's answer."""
        async with self._answer() as answer:
            await self.page.mouse.click(*await self._on_screen(x, y))
        return await _body(answer)

    async def drag(self, x0: float, y0: float, x1: float, y1: float) -> dict[str, Any]:
        """Draw a rectangle, and return Label Studio's answer."""
        async with self._answer() as answer:
            await self.page.mouse.move(*await self._on_screen(x0, y0))
            await self.page.mouse.down()
            await self.page.mouse.move(*await self._on_screen((x0 + x1) / 2, (y0 + y1) / 2))
            await self.page.mouse.move(*await self._on_screen(x1, y1))
            await self.page.mouse.up()
        return await _body(answer)

    async def suggestions(self) -> list[dict[str, Any]]:
        """Return the masks that are shown and not accepted yet."""
        script = f"() => Array.from({_SELECTED}.suggestions.values()).flatMap((r) => r.serialize())"
        found: list[dict[str, Any]] = await self.page.evaluate(script)
        return found

    async def suggested(self, count: int = 1) -> list[dict[str, Any]]:
        """Wait for the masks of a click that was answered."""
        await self.page.wait_for_function(
            f"() => !{_STORE}.awaitingSuggestions && {_SELECTED}.suggestions.size === {count}",
            timeout=_WAIT_MS,
        )
        return await self.suggestions()

    async def accept(self) -> None:
        """Accept the suggestions."""
        await self.page.get_by_test_id("bottombar-accept-suggestions-button").click()

    async def regions(self) -> list[dict[str, Any]]:
        """Return the regions of the annotation."""
        script = f"() => {_SELECTED}.serializeAnnotation()"
        found: list[dict[str, Any]] = await self.page.evaluate(script)
        return found

    async def delete_first(self) -> None:
        """Delete the first region of the list."""
        before = len(await self.regions())
        await self.page.locator(".lsf-outliner-item").first.click()
        await self.page.keyboard.press("Backspace")
        await self.page.wait_for_function(
            f"(before) => {_SELECTED}.regions.length === before - 1",
            arg=before,
            timeout=_WAIT_MS,
        )

    async def save(self) -> None:
        """Save the annotation, for the first time or again."""
        async with self.page.expect_response(
            lambda response: "/annotations" in response.url and response.request.method != "GET"
        ) as response:
            button = "[data-testid=bottombar-submit-button], [data-testid=bottombar-update-button]"
            await self.page.locator(button).first.click()
        assert (await response.value).ok

    async def _is_selected(self, control: str, label: str) -> bool:
        script = f"(name) => {_SELECTED}.names.get(name).selectedValues()"
        selected: list[str] = await self.page.evaluate(script, control)
        return label in selected

    def _answer(self) -> Any:
        return self.page.expect_response("**/interactive-annotating", timeout=_WAIT_MS)

    async def _on_screen(self, x: float, y: float) -> tuple[float, float]:
        # The image may be larger than the canvas that shows a part of it.
        box = await self.page.locator(".lsf-image img").bounding_box()
        assert box is not None
        across, down = x / self._width, y / self._height
        return box["x"] + across * box["width"], box["y"] + down * box["height"]


async def _body(answer: Any) -> dict[str, Any]:
    found: dict[str, Any] = await (await answer.value).json()
    return found
