"""The ways to open an image, and what is said about files that cannot be opened."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from io import BytesIO

import numpy as np
import pytest
import pytest_asyncio
from PIL import Image
from playwright.async_api import Browser, expect
from samserve.app import Running
from samserve.client import Client

from tests.web import photos
from tests.web.page import WebPage, opened
from tests.web.serving import address_of, web_service

pytestmark = [pytest.mark.slow, pytest.mark.asyncio(loop_scope="package")]

TRANSFER = """([name, kind, text]) => {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: kind }));
  return transfer;
}"""


async def drop(page: WebPage, name: str, kind: str, content: bytes) -> None:
    """Drop a file on the page."""
    arguments = [name, kind, base64.b64encode(content).decode()]
    transfer = await page.page.evaluate_handle(TRANSFER, arguments)
    target = page.page.get_by_role("main")
    for event in ("dragenter", "dragover", "drop"):
        await target.dispatch_event(event, {"dataTransfer": transfer})


async def paste(page: WebPage, name: str, kind: str, content: bytes) -> None:
    """Paste an image, as from a screenshot."""
    arguments = [name, kind, base64.b64encode(content).decode()]
    await page.page.evaluate(
        f"""(values) => document.body.dispatchEvent(new ClipboardEvent("paste", {{
              clipboardData: ({TRANSFER})(values), bubbles: true, cancelable: true }}))""",
        arguments,
    )


async def embedding_id(service: Running, image: bytes) -> str:
    async with Client(service.address) as client:
        return (await client.embed(image)).id


async def test_images_are_chosen_dropped_pasted_and_taken_from_the_samples(
    service: Running, page: WebPage
) -> None:
    images = [photos.marked([(50 + 10 * n, 40)], 320, 200 + n) for n in range(3)]
    await page.open_photo(images[0])
    await drop(page, "dropped.png", "image/png", images[1])
    await page.name_is("dropped.png")
    await page.encoded(320, 201)
    dropped = await page.click(100, 100)
    await paste(page, "image.png", "image/png", images[2])
    await page.name_is("image.png")
    # The objects were those of the other image.
    await expect(page.objects).to_have_count(0)
    await page.encoded(320, 202)
    pasted = await page.click(100, 100)
    await page.button("Open image").click()
    await page.open_sample("coins")
    sample = await page.click(100, 60)

    assert dropped.embedding_id == await embedding_id(service, images[1])
    assert pasted.embedding_id == await embedding_id(service, images[2])
    assert sample.embedding_id == await embedding_id(service, photos.sample("coins"))


async def test_known_image_is_not_sent_again(service: Running, page: WebPage) -> None:
    image = photos.marked([(33, 44)], 200, 100)
    async with Client(service.address) as client:
        await client.embed(image)
    await page.open_photo(image)

    (message,) = [body for name, body in page.traffic.calls if name == "Embed"]
    assert len(message) < 200


@pytest.mark.parametrize("kind", ["GIF", "BMP", "AVIF"])
async def test_formats_that_the_server_does_not_read_are_converted(
    page: WebPage, kind: str
) -> None:
    pixels = np.asarray(Image.open(BytesIO(photos.sample("coins"))).convert("RGB"))
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind)

    await page.open_file(f"photo.{kind.lower()}", buffer.getvalue(), f"image/{kind.lower()}")
    await page.encoded(*photos.SAMPLE_SIZES["coins"])
    await page.click(100, 60)


BROKEN = photos.png(np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8))[:5000]


@pytest_asyncio.fixture(scope="module", loop_scope="package")
async def strict() -> AsyncIterator[Running]:
    """A server with small limits."""
    limits = {"max_image_pixels": 200_000, "max_request_bytes": 1 << 20}
    async with web_service(limits=limits) as service:
        yield service


@pytest.mark.parametrize(
    ("name", "kind", "content", "reason"),
    [
        ("notes.txt", "text/plain", b"no image", "not an image"),
        ("renamed.png", "image/png", b"no image either", "damaged|not an image|cannot be read"),
        ("broken.png", "image/png", BROKEN, "damaged|broken|cannot be read"),
        ("empty.png", "image/png", b"", "empty"),
    ],
    ids=["text", "renamed", "broken", "empty"],
)
async def test_file_that_is_no_image_is_refused_with_the_reason(
    page: WebPage, name: str, kind: str, content: bytes, reason: str
) -> None:
    await page.open_file(name, content, kind)

    await expect(page.alert).to_contain_text(re.compile(f"{name} cannot be opened: .*({reason})"))
    assert page.traffic.count("Embed") == 0
    # The page goes on.
    await page.alert.get_by_role("button", name="Dismiss").click()
    await expect(page.alert).to_have_count(0)
    await page.open_sample("coins")


async def test_image_over_a_limit_of_the_server_is_not_sent(
    chromium: Browser, strict: Running
) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (700, 500, 3), np.uint8)
    async with opened(chromium, address_of(strict)) as page:
        await page.open_photo(photos.marked([(50, 50)], 300, 200))
        await page.click(100, 100)
        await page.open_file("large.png", photos.marked([(50, 50)], 1000, 201))
        await expect(page.alert).to_contain_text(
            re.compile("large.png cannot be opened: it has 1000 . 201 pixels")
        )
        await expect(page.alert).to_contain_text("limit of the server")
        await page.open_file("heavy.png", photos.png(noise))
        await expect(page.alert.filter(has_text="heavy.png")).to_contain_text(
            re.compile(r"the file has .* MB, the limit of the server is 1.0 MB")
        )
        # The image that was open stays, with its objects.
        await expect(page.objects).to_have_count(1)
        assert page.traffic.count("Embed") <= 2
