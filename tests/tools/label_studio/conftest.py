"""A real Label Studio, a bridge and a gateway with the default model, and Chromium."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import skimage.data
from PIL import Image
from playwright.async_api import async_playwright

from harness.bridge import BridgeServer
from harness.gateway import GatewayServer
from harness.label_studio import LabelStudioServer
from tests.examples.browser import launch
from tests.secret_leaks import secret
from tests.tools.label_studio.labeling import Labeling

COINS_SIZE = 303, 384


@pytest.fixture(scope="session")
def coins() -> bytes:
    """A PNG of 24 coins, of `COINS_SIZE`."""
    buffer = io.BytesIO()
    Image.fromarray(skimage.data.coins()).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def server() -> Iterator[LabelStudioServer]:
    made = LabelStudioServer()
    secret(made.password)
    secret(made.legacy_token)
    with made:
        yield made


@pytest.fixture(scope="module")
def gateway() -> Iterator[GatewayServer]:
    with GatewayServer({}) as made:
        yield made


@pytest.fixture(scope="module")
def access_token(server: LabelStudioServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(secret(server.personal_access_token()))
    return path


@pytest.fixture(scope="module")
def bridge(
    server: LabelStudioServer, gateway: GatewayServer, access_token: Path
) -> Iterator[BridgeServer]:
    settings = {
        "gateways.targets": gateway.target,
        "label_studio.url": server.url,
        "label_studio.token_file": access_token,
    }
    with BridgeServer(settings) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module")
async def labeling(server: LabelStudioServer) -> AsyncIterator[Labeling]:
    """The labeling page; the user is logged in."""
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        page = await browser.new_page(viewport={"width": 1280, "height": 860})
        made = Labeling(page, server, COINS_SIZE)
        await made.log_in()
        yield made
        await browser.close()
