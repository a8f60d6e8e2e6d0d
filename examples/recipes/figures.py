"""Draw the figures of docs/clients-recipes.md: each recipe, with the default model.

Usage: python examples/recipes/figures.py docs/images
The images are those of scikit-image.  A server is started in this process.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import skimage.data
from PIL import Image
from samserve import app, settings
from samserve.telemetry import logs
from skimage import filters, measure, segmentation

HERE = Path(__file__).parent
ON_FREE_PORTS = {"server": {"port": 0, "admin_port": 0}, "log": {"level": "warning"}}
ROCKET_CLICKS = ("--point", "130,100", "--point", "130,200", "--point", "130,280")


def detect(image: npt.NDArray[np.uint8]) -> list[dict[str, Any]]:
    """Return boxes of coins as COCO results, from a watershed between dark and bright pixels."""
    markers = np.select([image < 30, image > 150], [1, 2])
    coins = measure.label(segmentation.watershed(filters.sobel(image), markers) == 2)
    found = []
    for region in measure.regionprops(coins):
        top, left, bottom, right = (int(value) for value in region.bbox)
        if region.area > 200:
            box = [left, top, right - left, bottom - top]
            found.append({"image_id": 1, "category_id": 1, "bbox": box, "score": 1.0})
    return found


async def run(recipe: str, *arguments: str | Path, server: str) -> None:
    """Run the command of a recipe."""
    command = [sys.executable, HERE / f"{recipe}.py", *arguments, "--server", server]
    process = await asyncio.create_subprocess_exec(*map(str, command))
    if await process.wait():
        raise SystemExit(f"{recipe} failed")


async def draw(folder: Path, scratch: Path, server: str) -> None:
    """Write the sample images to *scratch*, and the figures to *folder*."""
    coins, astronaut = skimage.data.coins(), skimage.data.astronaut()
    for name, image in {
        "coins": np.repeat(coins[..., None], 3, axis=2),
        "astronaut": astronaut,
        "rocket": skimage.data.rocket()[80:, 190:450],
    }.items():
        Image.fromarray(image).save(scratch / f"{name}.png")
    boxes = scratch / "boxes.json"
    boxes.write_text(json.dumps(detect(coins)), "utf-8")

    def figure(name: str) -> Path:
        return folder / f"recipe-{name}.png"

    photo = scratch / "coins.png"
    await run("refine", scratch / "rocket.png", figure("refine"), *ROCKET_CLICKS, server=server)
    files = ("--coco", boxes, "--results", scratch / "masks.json")
    await run("boxes", photo, figure("boxes"), *files, server=server)
    best = ("--count", "30", "--points-per-side", "16")
    await run("proposals", photo, figure("proposals"), *best, server=server)
    good = ("--pred-iou-thresh", "0.8")
    await run("edges", scratch / "astronaut.png", figure("edges"), *good, server=server)


def shrink(figure: Path) -> None:
    """Reduce the file to 256 colours."""
    with Image.open(figure) as image:
        smaller = image.convert("RGB").quantize(256, kmeans=3)
    smaller.save(figure, optimize=True)


async def main(folder: Path) -> None:
    """Draw all figures."""
    config = settings.load(ON_FREE_PORTS)
    logs.configure(config.log)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        async with app.running(config) as service:
            await draw(folder, Path(scratch), service.address)
    for figure in folder.glob("recipe-*.png"):
        shrink(figure)


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
