"""Masks that the browser decodes are those of the server, for every prompt and size of images."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import skimage.data
import torch
from playwright.async_api import Page, async_playwright
from samserve.core import masks
from samserve.export.pipeline import ExportOptions, export
from samserve.models.families import SAM1
from samserve.types import Size
from samserve.v1 import samserve_pb2 as pb

from tests.conftest import serving_models
from tests.examples.browser import launch
from tests.families.toys import FEW_PIXELS, Toy, sam2_toy, sam_hq_toy
from tests.oracle import photos, sam
from tests.sample_images import encode
from tests.web import decoding
from tests.web.decoding import Asked, Found
from tests.web.photos import large

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

MULTIMASKS = ("AUTO", "SINGLE", "ALL")
IMAGES: dict[str, Callable[[], bytes]] = {
    "landscape": lambda: encode(photos.coffee_427x640()),
    "portrait": lambda: encode(photos.hubble_1800x1200(), "JPEG"),
    "square": lambda: encode(photos.retina_1411x1411(), "JPEG"),
    "wide": lambda: encode(skimage.data.coffee()[200:257, :599]),
    "tiny": lambda: encode(skimage.data.chelsea()[100:131, 150:173]),
    "12 megapixels": large,
}


@dataclass(frozen=True)
class Sides:
    """The sides of a model's frames."""

    image_size: int
    mask_size: int


@dataclass(frozen=True)
class Both:
    """The page and the stub of one server."""

    page: Page
    stub: Any
    base: str
    credential: str

    async def open(self, model: str, **options: int) -> dict[str, Any]:
        """Load the decoder of a model in the page."""
        argument = {"base": self.base, "credential": self.credential, "model": model, **options}
        opened: dict[str, Any] = await self.page.evaluate(
            "({ base, credential, model, threads }) => "
            "harness.open(base, credential, model, threads)",
            argument,
        )
        return opened

    async def embed(self, image: bytes, model: str = "") -> tuple[str, int, int]:
        """Embed an image, load the embedding in the page; return its id, width and height."""
        request = pb.EmbedRequest(image=pb.Image(encoded=image), model=model)
        embedding = (await self.stub.Embed(request)).embedding
        await self.page.evaluate("(id) => harness.use(id)", embedding.id)
        return embedding.id, embedding.image_size.width, embedding.image_size.height


@pytest.fixture(scope="session")
def page_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoding")
    decoding.build(folder)
    return folder


@asynccontextmanager
async def serving_page(folder: Path, **sections: dict[str, Any]) -> AsyncIterator[Both]:
    """Serve the page with models, by default the default one, and open it."""
    served = decoding.sections(folder)
    served["http"] |= sections.pop("http", {})
    async with (
        serving_models(**served, **sections) as (service, stub),
        async_playwright() as playwright,
    ):
        browser = await launch(playwright)
        page = await browser.new_page()
        await page.goto(service.http_address)
        yield Both(page, stub, service.http_address, decoding.credential(service))
        await browser.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def both(page_folder: Path) -> AsyncIterator[Both]:
    async with serving_page(page_folder) as both:
        yield both


def sam_toy(folder: Path, name: str) -> Toy:
    """Export a small encoder, and the decoder at full size."""
    model = sam.build_sam(sam.TINY, photos.calibration(), foreground=FEW_PIXELS)
    torch.save(model.state_dict(), folder / "sam.pth")
    repository = folder / "repository"
    export(folder / "sam.pth", ExportOptions(repository, name, check_parity=False))
    return Toy(model, repository, name)


MAKERS = {"sam": sam_toy, "sam2": sam2_toy, "sam_hq": sam_hq_toy}


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sam", *(pytest.param(name, marks=pytest.mark.long) for name in ("sam2", "sam_hq"))],
)
async def family(
    request: pytest.FixtureRequest, page_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[str, Both]]:
    """A model of another family, or the decoder of SAM ViT-B and MobileSAM at full size."""
    name = request.param
    toy = MAKERS[name](tmp_path_factory.mktemp(name), name)
    engine = {"model_repository": str(toy.repository), "default_model": name}
    async with serving_page(page_folder, engine=engine, http={"decoder_downloads": name}) as both:
        yield name, both


def prompts(width: int, height: int) -> dict[str, Asked]:
    """Return a prompt of each kind, at fractional pixels."""

    def at(x: float, y: float, inside: bool = True) -> tuple[float, float, bool]:
        return x * width, y * height, inside

    box = (0.21 * width, 0.3 * height, 0.63 * width, 0.87 * height)
    return {
        "point": Asked([at(0.47, 0.52)]),
        "corner": Asked([(0.0, 0.0, True)]),
        "background point": Asked([at(0.3, 0.3, False)]),
        "several points": Asked([at(0.31, 0.43), at(0.55, 0.6), at(0.9, 0.12, False)]),
        "box": Asked(box=box),
        "box and points": Asked([at(0.4, 0.5), at(0.25, 0.8, False)], box),
    }


def check(in_browser: list[Found], on_server: list[Found]) -> None:
    """Compare the masks of a prompt, their order and their scores."""
    assert [each.token for each in in_browser] == [each.token for each in on_server]
    for one, other in zip(in_browser, on_server, strict=True):
        assert one.runs.sum() == other.runs.sum()
        assert one.iou(other) >= 0.999
        assert one.area == int(one.runs[1::2].sum())
        assert one.predicted_iou == pytest.approx(other.predicted_iou, abs=1e-3)
        assert one.stability == pytest.approx(other.stability, abs=2e-3)
        assert np.abs(one.values() - other.values()).max() < 0.02
        if np.array_equal(one.runs, other.runs):
            assert one.bbox == other.bbox


async def compare(both: Both, embedding_id: str, asked: Asked) -> list[Found]:
    """Compare the masks of a prompt in every multimask mode; return those of the server."""
    found = []
    for multimask in MULTIMASKS:
        expected = await decoding.on_server(both.stub, embedding_id, asked, multimask)
        check(await decoding.in_browser(both.page, asked, multimask), expected)
        found += expected
    return found


@pytest.mark.parametrize("name", IMAGES)
async def test_default_model_has_the_masks_of_the_server(both: Both, name: str) -> None:
    await both.open("sam_tiny")
    embedding_id, *size = await both.embed(IMAGES[name]())
    chosen = prompts(*size) if name == "landscape" else dict(list(prompts(*size).items())[-3:])
    found = [each for asked in chosen.values() for each in await compare(both, embedding_id, asked)]
    assert len({each.area for each in found}) > len(MULTIMASKS)


async def test_other_models_have_the_masks_of_the_server(family: tuple[str, Both]) -> None:
    name, both = family
    await both.open(name)
    embedding_id, *size = await both.embed(IMAGES["landscape"]())
    tokens = set()
    for kind, asked in prompts(*size).items():
        found = await compare(both, embedding_id, asked)
        tokens |= {each.token for each in found}
        if kind in ("point", "box"):
            await compare(both, embedding_id, Asked(asked.points, asked.box, found[0].logits))
    assert tokens == ({4} if name == "sam_hq" else {0, 1, 2, 3})


async def test_refining_a_mask_of_either_side_has_the_masks_of_the_server(both: Both) -> None:
    await both.open("sam_tiny")
    embedding_id, width, height = await both.embed(IMAGES["landscape"]())
    for name in ("point", "box"):
        asked = prompts(width, height)[name]
        (mine,) = await decoding.in_browser(both.page, asked, "AUTO")
        (other,) = await decoding.on_server(both.stub, embedding_id, asked, "AUTO")
        for logits in (mine.logits, other.logits):
            for points in ([], [(0.3 * width, 0.6 * height, False)]):
                await compare(both, embedding_id, Asked(points, asked.box, logits))
    refined = await decoding.in_browser(both.page, Asked(logits=other.logits), "AUTO")
    plain = await decoding.in_browser(both.page, prompts(width, height)["point"], "AUTO")
    assert refined[0].iou(plain[0]) < 0.999


@pytest.mark.parametrize(("width", "height"), [(640, 427), (23, 31), (1, 1), (1999, 3011), (9, 1)])
async def test_equal_logits_have_equal_pixels_and_scores(
    both: Both, width: int, height: int
) -> None:
    random = np.random.default_rng(width)
    axis = np.linspace(-3, 3, 256)
    blob = 4 - 2 * np.hypot(axis[:, None] + 1, axis + 1.5)
    size = Size(height, width)
    upsampling = SAM1.upsampling(SAM1.transform(size, Sides(1024, 256)))
    for noise in (0.0, 0.5, 8.0):
        logits = (blob + noise * random.normal(size=(256, 256))).astype(np.float32)
        expected = masks.trace(logits, upsampling, level=0.0, offset=1.0)
        encoded = base64.b64encode(logits.tobytes()).decode()
        found = await both.page.evaluate(
            "([logits, width, height]) => harness.trace(logits, width, height)",
            [encoded, width, height],
        )
        assert found["runs"] == expected.runs().tolist()
        assert found["area"] == expected.summary().area
        assert found["stability"] == expected.stability
        x, y, x_max, y_max = expected.summary().box_xyxy
        box = {"x": x, "y": y, "width": x_max - x, "height": y_max - y}
        assert found["bbox"] == box


async def test_page_is_isolated_and_several_threads_have_equal_masks(both: Both) -> None:
    asked = Asked([(300.0, 200.0, True)])
    found = []
    for threads in (1, 2):
        opened = await both.open("sam_tiny", threads=threads)
        assert (opened["threads"], opened["isolated"]) == (threads, True)
        await both.embed(IMAGES["landscape"]())
        found.append(await decoding.in_browser(both.page, asked, "AUTO"))
    check(found[0], found[1])


async def test_calls_that_are_aborted_end_and_the_last_is_answered(both: Both) -> None:
    await both.open("sam_tiny")
    await both.embed(IMAGES["landscape"]())
    asked = Asked([(300.0, 200.0, True)]).for_page("ALL")
    ends = await both.page.evaluate("(asked) => harness.overtake(asked, 20)", asked)
    assert ends == ["AbortError"] * 19 + ["fulfilled"]


async def test_a_call_can_be_aborted_at_any_moment(both: Both) -> None:
    await both.open("sam_tiny")
    await both.embed(IMAGES["12 megapixels"]())
    asked = Asked([(2000.0, 1500.0, True)]).for_page("ALL")
    ends = set()
    for milliseconds in (0, 1, 5, 20, 40, 60, 80, 5000):
        script = "([asked, milliseconds]) => harness.interrupt(asked, milliseconds)"
        end, count = await both.page.evaluate(script, [asked, milliseconds])
        assert count == 3
        ends.add(end)
    assert "AbortError" in ends <= {"AbortError", "fulfilled"}


async def test_impossible_work_is_refused_with_a_reason(both: Both) -> None:
    await both.open("sam_tiny")

    async def refusal(**changes: Any) -> str:
        reason: str = await both.page.evaluate(
            "(changes) => harness.refusal(changes, [1, 2, 3])", changes
        )
        return reason

    digest = hashlib.sha256(bytes([1, 2, 3])).hexdigest()
    assert (await refusal(decoderSha256="")).startswith("Unsupported: The server does not allow")
    assert (await refusal()).startswith("Unsupported: The decoder that arrived is not the one")
    assert "loading the decoder failed" in await refusal(decoderSha256=digest)
    assert "family sam9" in await refusal(family="sam9")

    embedding_id, *_ = await both.embed(IMAGES["tiny"]())
    await both.open("sam_tiny")
    reason = await both.page.evaluate("(id) => harness.useOfOther(id)", embedding_id)
    assert reason.startswith("Unsupported: The model was replaced")

    await both.embed(IMAGES["tiny"]())
    for asked in (Asked(), Asked([(23.5, 3.0, True)]), Asked(box=(3.0, 3.0, 3.0, 9.0))):
        argument = asked.for_page("AUTO")
        reason = await both.page.evaluate("(asked) => harness.failure(asked)", argument)
        assert reason.startswith("InvalidPrompt: ")


async def test_only_the_plain_runtime_is_shipped(page_folder: Path) -> None:
    names = decoding.runtime_files(page_folder)
    assert sorted(name.rpartition(".")[2] for name in names) == ["mjs", "wasm"]
    assert all(re.fullmatch(r"ort-wasm-simd-threaded-[\w-]{8}\.\w+", name) for name in names)


@pytest.mark.parametrize("blocked", ["**/*.wasm", "**/*.mjs", "**/decode.worker*"])
async def test_a_runtime_that_cannot_be_loaded_has_a_reason(both: Both, blocked: str) -> None:
    context = await both.page.context.browser.new_context()
    page = await context.new_page()
    await page.route(blocked, lambda route: route.abort())
    await page.goto(both.base)
    script = "(all) => harness.openFailure(...all)"
    reason = await page.evaluate(script, [both.base, both.credential, "sam_tiny"])
    await context.close()
    assert reason.startswith("Unsupported: ")
