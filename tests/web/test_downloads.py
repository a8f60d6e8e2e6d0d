"""The files that the page saves, against the masks of the server."""

from __future__ import annotations

import re
import zipfile
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image
from playwright.async_api import expect
from pycocotools import mask
from pycocotools.coco import COCO
from samserve.app import Running
from samserve.client import Client, Prompt

from tests.web import photos
from tests.web.page import WebPage

pytestmark = [
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="package"),
    # pycocotools.mask.decode on numpy 2
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

POINTS = [(300, 160), (60, 60)]


async def test_all_objects_are_saved_in_every_format(
    service: Running, page: WebPage, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await page.open_sample("coffee")
    prompts = []
    for point in POINTS:
        await page.button("New object").click(force=True)
        sent = (await page.click(*point)).prompts[0].points[0]
        prompts.append(Prompt(points=[(sent.x, sent.y)]))
    await page.page.get_by_role("textbox", name="Name of object 1").fill("the cup/ä")
    await page.page.keyboard.press("Enter")
    async with Client(service.address) as client:
        found = await client.predict(photos.sample("coffee"), prompts, multimask="all")
    best = [max(answers, key=lambda each: each.predicted_iou) for answers in found.results]
    pixels = np.asarray(Image.open(BytesIO(photos.sample("coffee"))).convert("RGB"))

    name, content = await page.download("Masks (PNG)")
    assert name == "coffee-masks.zip"
    with zipfile.ZipFile(BytesIO(content)) as archive:
        assert archive.namelist() == ["coffee-the cup_ä.png", "coffee-object 2.png"]
    for saved, expected in zip(photos.masks_of_archive(content), best, strict=True):
        np.testing.assert_array_equal(saved, expected.array)

    name, content = await page.download("Cut-outs (PNG)")
    assert name == "coffee-cut-outs.zip"
    with zipfile.ZipFile(BytesIO(content)) as archive:
        cut_outs = [Image.open(BytesIO(archive.read(each))) for each in archive.namelist()]
    for cut_out, expected in zip(cut_outs, best, strict=True):
        rows, columns = np.nonzero(expected.array)
        crop = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert cut_out.mode == "RGBA"
        shown = np.asarray(cut_out)
        np.testing.assert_array_equal(shown[..., 3], expected.array[crop] * 255)
        difference = shown[..., :3].astype(int) - pixels[crop]
        # The browser's decoder of JPEG is another one.
        assert np.abs(difference[expected.array[crop]]).max() <= 4

    name, content = await page.download("COCO JSON")
    assert name == "coffee-coco.json"
    file = tmp_path / "coco.json"
    file.write_bytes(content)
    coco = COCO(str(file))
    capsys.readouterr()
    annotations = coco.loadAnns(coco.getAnnIds())
    assert [coco.cats[each["category_id"]]["name"] for each in annotations] == [
        "the cup/ä",
        "object 2",
    ]
    for annotation, expected in zip(annotations, best, strict=True):
        np.testing.assert_array_equal(coco.annToMask(annotation), expected.array)
        assert annotation["area"] == expected.area
        assert annotation["bbox"] == list(mask.toBbox(annotation["segmentation"]))
    (described,) = coco.dataset["images"]
    assert (described["width"], described["height"]) == (600, 400)

    name, content = await page.download("SVG")
    assert name == "coffee-outlines.svg"
    root = ET.fromstring(content)
    assert (root.get("width"), root.get("height")) == ("600", "400")
    paths = root.findall("{http://www.w3.org/2000/svg}path")
    assert [path[0].text for path in paths] == ["the cup/ä", "object 2"]
    for path, expected in zip(paths, best, strict=True):
        numbers = [float(each) for each in re.findall(r"[\d.]+", path.get("d", ""))]
        rows, columns = np.nonzero(expected.array)
        assert min(numbers[::2]) == pytest.approx(columns.min(), abs=1)
        assert max(numbers[1::2]) == pytest.approx(rows.max() + 1, abs=1)


async def test_one_object_is_one_png(page: WebPage) -> None:
    await page.open_sample("coins")
    await expect(page.button("Cut-outs (PNG)")).to_be_disabled()
    await page.click(155, 51)

    for button in ("Masks (PNG)", "Cut-outs (PNG)"):
        name, content = await page.download(button)
        assert name == "coins-object 1.png"
        assert Image.open(BytesIO(content)).format == "PNG"
