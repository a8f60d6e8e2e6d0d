"""Takes the screenshots of `docs/tools.md`: ``python -m tests.tools.label_studio.screenshots``."""

from __future__ import annotations

import asyncio
import io
import tempfile
from pathlib import Path

import skimage.data
from PIL import Image
from playwright.async_api import Page, async_playwright
from samserve.bridge.tools.label_studio.preannotation import Target
from samserve.client import SyncClient
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.regions import prediction

from harness.bridge import BridgeServer
from harness.gateway import GatewayServer
from harness.label_studio import LabelStudioServer
from tests.examples.browser import launch
from tests.tools.label_studio.labeling import Labeling
from tests.tools.label_studio.projects import CONFIG

IMAGES = Path(__file__).parents[3] / "docs" / "images"
_MAX_AREA = 0.2


async def take(server: LabelStudioServer, bridge: BridgeServer, gateway: GatewayServer) -> None:
    """Take a screenshot of clicks, and one of predictions."""
    coins = skimage.data.coins()
    buffer = io.BytesIO()
    Image.fromarray(coins).save(buffer, "PNG")
    project = server.create_project("Coins", CONFIG)
    first, second = server.upload(
        project, {"coins.png": buffer.getvalue(), "more.png": buffer.getvalue()}
    )
    server.connect(project, f"{bridge.tools_url}/label-studio")
    with SyncClient(gateway.target) as client:
        found = client.automask_all(buffer.getvalue(), points_per_side=16)
    regions = Target.of(LabelConfig.parse(CONFIG)).regions(found, _MAX_AREA)
    server.call(
        "POST",
        f"/api/projects/{project}/import/predictions",
        json=[{"task": second, **prediction(regions, found.summary.embedding.model)}],
    )
    async with async_playwright() as playwright:
        browser = await launch(playwright)
        page = await browser.new_page(viewport={"width": 1400, "height": 820})
        labeling = Labeling(page, server, coins.shape)
        await labeling.log_in()
        await labeling.open(project, first)
        await labeling.keep_label()
        await labeling.choose("point", "Coin", "key-point-tool")
        for position in ((44, 124), (102, 125)):
            await labeling.click(*position)
            await labeling.suggested()
            await labeling.accept()
        await labeling.choose("box", "Coin", "rectangle-tool")
        await labeling.drag(76, 170, 128, 222)
        await labeling.suggested()
        await _save(page, "tools-label-studio.png")
        await labeling.open(project, second)
        await asyncio.sleep(1)
        await _save(page, "tools-label-studio-predictions.png")
        await browser.close()


async def _save(page: Page, name: str) -> None:
    await page.mouse.move(2, 400)
    await asyncio.sleep(1)
    shot = Image.open(io.BytesIO(await page.screenshot())).convert("RGB")
    shot.quantize(128, dither=Image.Dither.NONE).save(IMAGES / name, optimize=True)


def main() -> None:
    """Run all servers, and take the screenshots."""
    with (
        LabelStudioServer() as server,
        GatewayServer({}) as gateway,
        tempfile.TemporaryDirectory() as folder,
    ):
        token = Path(folder) / "token"
        token.write_text(server.personal_access_token())
        settings = {
            "gateways.targets": gateway.target,
            "label_studio.url": server.url,
            "label_studio.token_file": token,
        }
        with BridgeServer(settings) as bridge:
            asyncio.run(take(server, bridge, gateway))


if __name__ == "__main__":
    main()
