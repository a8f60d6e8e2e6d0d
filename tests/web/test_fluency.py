"""A photograph of 12 megapixels: no task keeps the page's thread from answering the user."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Browser
from samserve.app import Running

from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.serving import address_of

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

WIDTH, HEIGHT, CLICKS = 4000, 3000, 50
MAX_TASK_MS = 100

# Tasks, and what tells which thread is the page's.
CATEGORIES = ["devtools.timeline", "disabled-by-default-devtools.timeline", "__metadata"]


@dataclass(frozen=True)
class Task:
    """One task of the page's main thread: its duration, and the time that it computed, in ms."""

    duration: float
    computing: float


def tasks_of(trace: bytes) -> list[Task]:
    """Return the tasks of the main thread of the page in a trace of Chromium."""
    events: list[dict[str, Any]] = json.loads(trace)["traceEvents"]
    mains = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    return [
        # Of those that take microseconds, the second is not known.
        Task(event["dur"] / 1000, event.get("tdur", event["dur"]) / 1000)
        for event in events
        if event["name"] == "RunTask" and event["ph"] == "X"
        if (event["pid"], event["tid"]) in mains
    ]


async def use(page: WebPage) -> None:
    """Click 50 times, with previews in between; every tenth click begins an object."""
    positions = random.Random(0)
    for number in range(CLICKS):
        x, y = positions.uniform(100, WIDTH - 100), positions.uniform(100, HEIGHT - 100)
        await page.screen.move_to(WIDTH - x, y)
        await page.screen.move_to(x, y)
        if number % 10 == 0:
            await page.page.keyboard.press("n")
        await page.click(x, y)
    await page.page.mouse.wheel(0, -400)
    await page.screen.move_to(WIDTH / 2, HEIGHT / 2)
    await page.settled()


async def test_no_task_of_the_page_is_long_on_a_large_photograph(
    chromium: Browser, service: Running, tmp_path: Path
) -> None:
    file = tmp_path / "photo.jpg"
    file.write_bytes(photos.large(WIDTH, HEIGHT))
    async with opened(chromium, address_of(service)) as page:
        await page.button("Sample: coins").wait_for()
        await chromium.start_tracing(page=page.page, categories=CATEGORIES)
        # By its path: the content of a payload would itself be a long task.
        await page.page.get_by_label("Choose an image").set_input_files(file)
        await page.encoded(WIDTH, HEIGHT)
        await use(page)
        tasks = tasks_of(await chromium.stop_tracing())

    by_duration = sorted((task.duration for task in tasks), reverse=True)
    longest = max(task.computing for task in tasks)
    print(
        f"{len(tasks)} tasks; longest: {longest:.0f} ms of computing, "
        f"{by_duration[0]:.0f} ms, then {[round(each) for each in by_duration[1:6]]} ms"
    )
    assert len(page.traffic.answers()) == CLICKS
    assert len(tasks) > CLICKS
    # The time that the thread computed, not that in which other processes had its core: it is that
    # of an idle machine, and a busy one does not lengthen it.
    assert longest < MAX_TASK_MS
