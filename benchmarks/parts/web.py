"""Decoding in a browser beside calls of the server over Connect, from the same page in Chromium.

Both return the same masks as run lengths.  The time in the browser is that of the whole
`BrowserDecoder.predict`: the message to the worker, the decoder, upsampling and run lengths.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import re
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.common import cpu_s
from benchmarks.gateways import DEFAULT_MODEL, Gateway, points
from benchmarks.machine import MIB
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.results import Comparison, Cost, Figure, Latencies, Result
from benchmarks.sam_model import NAME, prepare
from harness.program import HOST
from harness.triton.ports import free_ports
from tests.examples.browser import launch
from tests.web import decoding

SIZES = ((640, 480), (4000, 3000))
TOY_SIZES = ((160, 120),)
BLOCKS, CALLS = 12, 5
STARTS = 5
"""Pages that are opened to measure what each needs once."""
SERVER = "call of the server"
_TOKEN = re.compile(r"#token=(\S+)")
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Served:
    """A gateway with the page, a model of it, and the credential of a session."""

    url: str
    credential: str
    model: str
    title: str


@dataclass
class Cell:
    """One page, whose decoder has so many threads, and one size of images."""

    page: Page
    size: tuple[int, int]
    embedding_id: str
    comparison: Comparison
    taken_ms: dict[str, list[float]] = field(default_factory=dict)
    counts: list[tuple[int, int]] = field(default_factory=list)
    least: float = 1.0


def run(plan: Plan) -> Result:
    """Measure the default model, and a small encoder with the decoder of SAM."""
    result, page = Result("web"), plan.folder / "web-page"
    decoding.build(page.absolute())
    sam = prepare(plan.folder, toy=plan.toy)
    for model, title, repository in (
        (DEFAULT_MODEL, "default model", None),
        (NAME, "decoder of SAM", sam.repository),
    ):
        port = free_ports(1)[0]
        more = {
            "http.enabled": "true",
            "http.port": port,
            "http.web_page": "true",
            "http.web_page_folder": page.absolute(),
            "http.decoder_downloads": model,
            "embedding_files.get_enabled": "true",
        }
        with Gateway(plan.threads, repository=repository, model=model, more=more) as gateway:
            url = f"http://{HOST}:{port}"
            served = Served(url, _credential(gateway, port), model, title)
            asyncio.run(_measure(served, plan, result))
    result.notes += [
        f"The server's engine has {plan.threads} threads, the decoder in the browser as many as "
        "the row says; the page chooses one less than there are cores, from 1 to 4. Each prompt "
        "is a point, and each answer has three masks. CPU time is that of the browser and of the "
        "server together.",
        "What a page needs once is measured with an empty cache of the browser, on loopback.",
    ]
    return result


def _credential(gateway: Gateway, port: int) -> str:
    """Exchange the token of the address that the gateway has printed."""
    deadline = time.monotonic() + _PATIENCE_S
    while not (found := _TOKEN.search(gateway.log_tail())):
        if time.monotonic() > deadline:
            raise RuntimeError("the gateway has printed no address of its page")
        time.sleep(0.05)
    with closing(http.client.HTTPConnection(HOST, port)) as connection:
        body = json.dumps({"token": found[1]})
        connection.request("POST", "/web/session", body, {"content-type": "application/json"})
        credential: str = json.load(connection.getresponse())["credential"]
    return credential


async def _measure(served: Served, plan: Plan, result: Result) -> None:
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        result.figures += await _starts(browser, served, plan)
        cells: list[Cell] = []
        for threads in sorted({1, min(4, plan.threads)}):
            page = await _opened(browser, served)
            await _open_decoder(page, served, threads)
            for size in TOY_SIZES if plan.toy else SIZES:
                cells.append(await _cell(page, size, served, threads))
        for block in range(plan.blocks(BLOCKS) + 1):
            for cell in cells:
                await _block(cell, block)
        await browser.close()
    for cell in cells:
        count, equal = (sum(each) for each in zip(*cell.counts, strict=True))
        cell.comparison.agreement = f"{equal} of {count} masks equal, least IoU {cell.least:.4f}"
        result.comparisons.append(cell.comparison)
        for place, taken_ms in cell.taken_ms.items():
            name = f"{cell.comparison.operation}: {place}"
            result.latencies.append(Latencies(name, taken_ms))


async def _cell(page: Page, size: tuple[int, int], served: Served, threads: int) -> Cell:
    image = base64.b64encode(photograph(*size)).decode()
    arguments = [image, served.model]
    embedding_id = await page.evaluate("(all) => harness.embed(...all)", arguments)
    name = f"{served.title}, {size[0]}x{size[1]}, {threads} thread{'s' * (threads > 1)}"
    return Cell(page, size, embedding_id, Comparison(name, SERVER))


async def _block(cell: Cell, block: int) -> None:
    """Decode some prompts in the browser, then ask the server; the first block only warms up."""
    await cell.page.evaluate("(id) => harness.use(id)", cell.embedding_id)
    where = points(*cell.size, CALLS * (block + 1))[CALLS * block :]
    prompts = [decoding.Asked([(x, y, True)]).for_page("ALL") for x, y in where]
    costs = {}
    for place in ("browser", "server"):
        taken_ms, costs[place] = await _timed(cell, place, prompts)
        if block:
            cell.taken_ms.setdefault(place, []).extend(taken_ms)
    if not block:
        return
    cell.comparison.ours.append(costs["browser"])
    cell.comparison.theirs.append(costs["server"])
    script = "([id, prompts]) => harness.compare(id, prompts)"
    found = await cell.page.evaluate(script, [cell.embedding_id, prompts])
    cell.counts.append((found["count"], found["equal"]))
    cell.least = min(cell.least, found["least"])


async def _timed(
    cell: Cell, place: str, prompts: Sequence[dict[str, Any]]
) -> tuple[list[float], Cost]:
    """Return the milliseconds of each call, and their median and the CPU time of a call."""
    script = "([place, id, prompts]) => harness.time(place, id, prompts)"
    before = _cpu_s_of_children()
    arguments = [place, cell.embedding_id, prompts]
    taken_ms: list[float] = await cell.page.evaluate(script, arguments)
    used = _cpu_s_of_children() - before
    return taken_ms, Cost(float(np.median(taken_ms)) / 1e3, used / len(prompts))


def _cpu_s_of_children() -> float:
    """Return the CPU seconds of the browser and the server; both are children of this process."""
    used = 0.0
    for each in psutil.Process().children(recursive=True):
        # A process of the browser may end meanwhile.
        with suppress(OSError):
            used += cpu_s(each.pid)
    return used


async def _starts(browser: Browser, served: Served, plan: Plan) -> list[Figure]:
    """Open pages that have nothing in their cache."""
    parts: dict[str, Callable[[dict[str, float]], float]] = {
        "download of the decoder": lambda found: found["downloadMs"],
        "start of the runtime with the decoder": lambda found: found["startMs"],
        "download of the embedding": lambda found: found["embeddingMs"],
        "reading of the embedding, and the first decode": lambda found: found["loadMs"],
    }
    figures = {name: Figure(f"{served.title}: {name}", "ms") for name in parts}
    image = base64.b64encode(photograph(*TOY_SIZES[0])).decode()
    sizes: dict[str, float] = {}
    for _ in range(1 if plan.toy else STARTS):
        page = await _opened(browser, served)
        found = await _open_decoder(page, served, 1)
        script = "async (all) => harness.use(await harness.embed(...all))"
        used = await page.evaluate(script, [image, served.model])
        sizes = {"decoder": found["bytes"], "embedding": used["bytes"]}
        found |= {"embeddingMs": used["downloadMs"], "loadMs": used["loadMs"]}
        for name, value in parts.items():
            figures[name].values.append(value(found))
        await page.context.close()
    return [
        *figures.values(),
        *(
            Figure(f"{served.title}: size of the {name}", "MiB", [nbytes / MIB])
            for name, nbytes in sizes.items()
        ),
    ]


async def _opened(browser: Browser, served: Served) -> Page:
    context = await browser.new_context()
    page = await context.new_page()
    await page.goto(served.url)
    return page


async def _open_decoder(page: Page, served: Served, threads: int) -> dict[str, float]:
    arguments = [served.url, served.credential, served.model, threads]
    found: dict[str, float] = await page.evaluate("(all) => harness.open(...all)", arguments)
    return found
