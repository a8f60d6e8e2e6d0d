"""Hovering over an image leaves no work behind: page, server and engine agree about every call."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import pytest
from playwright.async_api import Browser
from samserve.app import Running

from tests.engine_choice import run_count
from tests.metric_values import total
from tests.support.waiting import until
from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.serving import address_of, handled, in_flight, started, web_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

PACE_S = 0.01
"""Between two movements, as a mouse reports them."""
EVERY, REST = 40, 20
"""After so many movements the hand rests, for so many times the pace."""


def spiral(moves: int) -> Iterator[tuple[float, float]]:
    """Yield pixels of the photograph of coins on a path over all of it."""
    width, height = photos.SAMPLE_SIZES["coins"]
    for number in range(moves):
        radius = 0.1 + 0.35 * (1 + math.sin(number / 37)) / 2
        yield (
            width * (0.5 + radius * math.cos(number / 11)),
            height * (0.5 + radius * math.sin(number / 11)),
        )


async def hover(page: WebPage, moves: int) -> None:
    """Move the pointer over the image as a hand does, and then out of it."""
    for number, (x, y) in enumerate(spiral(moves)):
        await page.screen.move_to(x, y)
        await asyncio.sleep(PACE_S * (REST if number % EVERY == 0 else 1))
    await page.page.mouse.move(2, 2)


def work(service: Running) -> dict[str, float]:
    """Return what the server is doing now."""
    registry = service.metrics.registry
    return {
        "calls": in_flight(service, "Predict"),
        "decodes": total(registry, "samserve_engine_running"),
        "queued": total(registry, "samserve_queue_depth"),
    }


# The second takes more than a minute.
@pytest.mark.parametrize("moves", [300, pytest.param(5000, marks=pytest.mark.long)])
async def test_calls_and_decodes_that_hovering_begins_all_end(
    chromium: Browser, moves: int
) -> None:
    async with web_service() as service, opened(chromium, address_of(service)) as page:
        await page.open_sample("coins")
        decoded = {each: run_count(service, "decoder", each) for each in ("ok", "cancelled")}
        await hover(page, moves)
        await page.settled()
        await until(lambda: not any(work(service).values()))
        counts = await page.counts()
        begun = started(service, "Predict")
        ended = {
            code: int(handled(service, "Predict", grpc_code=code)) for code in ("OK", "CANCELLED")
        }
        runs = {
            outcome: run_count(service, "decoder", outcome) - before
            for outcome, before in decoded.items()
        }
        print(f"page {counts}, server {begun:.0f} begun {ended}, decoder {runs}")

        # In the page every call was answered or cancelled.
        assert counts["failed"] == 0
        assert counts["sent"] == counts["answered"] + counts["cancelled"]
        assert counts["answered"] > 0
        assert counts["cancelled"] > 0
        assert counts["sent"] == page.traffic.count("Predict")
        # On the server every call that arrived was answered or cancelled, and nothing else.
        assert begun == sum(ended.values()) == handled(service, "Predict")
        # A call that the page cancels at once may not arrive. One that it cancels while the answer
        # is under way was answered for the server.
        assert counts["answered"] <= ended["OK"] <= counts["answered"] + counts["cancelled"]
        assert begun <= counts["sent"]
        # Every answer needs a decode. A call that is cancelled before it reaches the decoder begins
        # none, and one whose answer was computed when it was cancelled has one that is complete.
        assert run_count(service, "decoder", "failed") == 0
        assert ended["OK"] <= runs["ok"]
        assert runs["ok"] + runs["cancelled"] <= begun
        # The server stops what the page no longer needs.
        assert ended["CANCELLED"] > 0
        assert runs["ok"] < begun
        # It still answers.
        await page.click(100, 60)
