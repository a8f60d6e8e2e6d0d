"""The quick starts of `docs/clients.md` work as they are; its recipes and figures are current."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import async_playwright
from samserve.app import Running, running
from samserve.client import Client, Prompt, SyncClient
from samserve.settings import load

from tests.examples.browser import launch, pages
from tests.examples.programs import EXAMPLES, ROOT, program

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs" / "mask-formats.md").read_text(encoding="utf-8")
RECIPES = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
PHOTO = ROOT / "service" / "samserve" / "export" / "samples" / "coffee.jpg"

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]


def blocks(heading: str, language: str, page: str = PAGE) -> list[str]:
    """Return the code blocks of a section of a page."""
    section = re.split(r"(?m)^#+ ", page.split(f"# {heading}\n", 1)[1])[0]
    return re.findall(rf"(?ms)^```{language}\n(.*?)^```", section)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The folder and the origin of a page that the server admits."""
    folder = tmp_path_factory.mktemp("site")
    with pages(folder) as origin:
        yield folder, origin


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(site: tuple[Path, str]) -> AsyncIterator[Running]:
    """A server with the default model and the settings of the page, on free ports."""
    settings = load(
        {
            "server": {"port": 0, "admin_port": 0},
            "http": {"enabled": True, "port": 0, "allowed_origins": site[1]},
        }
    )
    async with running(settings) as service:
        yield service


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def expected(service: Running) -> np.ndarray:
    """The mask that each quick start must write."""
    async with Client(service.address) as client:
        prediction = await client.predict(PHOTO, [Prompt(points=[(320, 240)])])
    mask = prediction.results[0][0].array
    assert 1000 < mask.sum() < mask.size - 1000
    return mask


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A reader's folder: a photo, the proto, and the packages of Node.js."""
    shutil.copy(PHOTO, tmp_path / "photo.jpg")
    (tmp_path / "proto").symlink_to(ROOT / "proto")
    (tmp_path / "node_modules").symlink_to(EXAMPLES / "node" / "node_modules")
    return tmp_path


def addressed(text: str, service: Running) -> str:
    """Replace the addresses of the page by those of the server, each of which must occur."""
    replaced = text.replace("http://127.0.0.1:8080", service.http_address)
    replaced = replaced.replace("127.0.0.1:50051", service.address)
    assert replaced != text
    return replaced


async def run(folder: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env={"PATH": path, "HOME": str(folder)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0, f"{out.decode()}\n{err.decode()}"
    return out.decode()


def written(folder: Path) -> np.ndarray:
    with Image.open(folder / "mask.png") as mask:
        return np.asarray(mask).astype(bool)


async def test_python_quick_start(service: Running, folder: Path, expected: np.ndarray) -> None:
    (text,) = blocks("Python", "python")
    (folder / "quick.py").write_text(addressed(text, service))

    printed = await run(folder, sys.executable, "quick.py")

    assert np.array_equal(written(folder), expected)
    assert printed.startswith(f"{expected.sum()} pixels")


async def test_node_quick_start(service: Running, folder: Path, expected: np.ndarray) -> None:
    (text,) = blocks("Node.js", "js")
    (folder / "quick.mjs").write_text(addressed(text, service))

    printed = await run(folder, program("node"), "quick.mjs")

    assert np.array_equal(written(folder), expected)
    assert printed.startswith(f"{expected.sum()} pixels")


@pytest.mark.parametrize("tool", ["curl", "buf curl"])
async def test_shell_quick_starts(
    tool: str, service: Running, folder: Path, expected: np.ndarray
) -> None:
    (text,) = blocks(tool, "sh")

    await run(folder, "bash", "-euo", "pipefail", "-c", addressed(text, service))

    assert np.array_equal(written(folder), expected)


async def test_browser_quick_start(
    service: Running, site: tuple[Path, str], expected: np.ndarray
) -> None:
    (text,) = blocks("Browser", "html")
    (site[0] / "index.html").write_text(addressed(text, service))

    async with async_playwright() as playwright:
        browser = await launch(playwright)
        page = await browser.new_page()
        await page.goto(site[1])
        await page.set_input_files("#file", PHOTO)
        await page.get_by_text("ready").wait_for()
        await page.click("#photo", position={"x": 320, "y": 240})
        await page.get_by_text("pixels").wait_for()
        area = await page.inner_text("#status")
        size = await page.evaluate(
            "async () => { await mask.decode(); return [mask.naturalHeight, mask.naturalWidth]; }"
        )
        await browser.close()

    assert area == f"{expected.sum()} pixels"
    assert tuple(size) == expected.shape


async def test_polygons_in_python(service: Running) -> None:
    (text,) = blocks("In Python", "python", FORMATS)
    names = {"embedding": PHOTO, "prompts": [Prompt(points=[(320, 240)])]}

    def execute() -> None:
        with SyncClient(service.address) as client:
            exec(text, {"client": client, **names}, names)

    await asyncio.to_thread(execute)

    outline = names["outline"]
    assert 0.9 < outline.iou < 1
    assert outline.geojson["type"] == "MultiPolygon"


async def test_run_lengths_in_javascript(service: Running, folder: Path) -> None:
    (text,) = blocks("In JavaScript", "js", FORMATS)
    (folder / "examples").symlink_to(EXAMPLES)
    async with Client(service.address) as client:
        prediction = await client.predict(PHOTO, [Prompt(box=(170, 10, 410, 230))])
    expected = prediction.results[0][0]
    rle = {
        "size": dict(zip(("height", "width"), expected.size, strict=True)),
        "counts": expected.counts,
    }
    imports, code = text.split("\n\n", 1)
    prints = 'console.log(Buffer.from(pixels).toString("hex"));'
    script = f"{imports}\nconst mask = {json.dumps({'cocoRle': rle})};\n{code}\n{prints}\n"
    (folder / "decode.mjs").write_text(script)

    printed = await run(folder, program("node"), "--preserve-symlinks", "decode.mjs")

    assert bytes.fromhex(printed) == expected.array.astype(np.uint8).tobytes()


async def test_service_config_of_the_page_is_that_of_the_examples() -> None:
    (text,) = re.findall(r"(?ms)^```json\n(.*?)^```", PAGE)

    assert json.loads(text) == json.loads((EXAMPLES / "retry/service_config.json").read_text())


async def test_recipes_draw_the_figures_of_the_page(tmp_path: Path) -> None:
    await run(tmp_path, sys.executable, str(EXAMPLES / "recipes" / "figures.py"), str(tmp_path))

    drawn = sorted(name for name in os.listdir(tmp_path) if name.startswith("recipe-"))
    assert drawn == sorted(re.findall(r"\(images/(recipe-\w+\.png)\)", RECIPES))
    for name in drawn:
        published = ROOT / "docs" / "images" / name
        assert published.stat().st_size < 150_000
        # Other processors round differently, which changes single pixels.
        assert mean_difference(tmp_path / name, published) < 2, name


def mean_difference(first: Path, second: Path) -> float:
    with Image.open(first) as a, Image.open(second) as b:
        pixels = [np.asarray(image.convert("RGB"), np.float64) for image in (a, b)]
    return float(np.abs(pixels[0] - pixels[1]).mean())


async def test_boxes_become_coco_results(service: Running, tmp_path: Path) -> None:
    boxes = [{"image_id": 7, "category_id": 3, "bbox": [170, 10, 240, 220], "score": 0.5}]
    for name, content in {"list": boxes, "file": {"annotations": boxes}}.items():
        (tmp_path / "boxes.json").write_text(json.dumps(content))
        files = ("--coco", "boxes.json", "--results", f"{name}.json")
        await recipe(service, tmp_path, "boxes", str(PHOTO), "out.png", *files)

    (result,) = json.loads((tmp_path / "list.json").read_text())
    assert result.items() > boxes[0].items()
    assert result["segmentation"]["size"] == [400, 600]
    assert json.loads((tmp_path / "file.json").read_text()) == [result]


async def test_batch_continues_after_an_image_that_fails(service: Running, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(3):
        shutil.copy(PHOTO, photos / f"{number}.jpg")
    (photos / "broken.png").write_bytes(b"no image")
    with Image.open(PHOTO) as image:
        image.resize((60, 40)).save(photos / "small.tiff")

    await recipe(service, tmp_path, "batch", "photos", "results.jsonl", "--at-once", "2")

    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    records = {Path(record["file"]).name: record for record in map(json.loads, lines)}
    assert sorted(records) == ["0.jpg", "1.jpg", "2.jpg", "broken.png", "small.tiff"]
    assert [name for name, record in records.items() if record["error"]] == ["broken.png"]
    assert records["small.tiff"]["segmentation"]["size"] == [40, 60]


async def recipe(service: Running, folder: Path, name: str, *arguments: str) -> None:
    script = str(EXAMPLES / "recipes" / f"{name}.py")
    await run(folder, sys.executable, script, *arguments, "--server", service.address)
