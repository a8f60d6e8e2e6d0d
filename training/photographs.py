"""What the service makes of real photographs, asked over gRPC with the defaults of its API.

The outlines of scikit-image's ``coins`` can be had without a model: `coin_masks` finds all 24 by
classical means, and they were checked by eye.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from numpy.typing import NDArray
from PIL import Image
from samserve import app, settings
from samserve.cli import overlay
from samserve.client import AutoMaskRecord, Client
from samserve.telemetry import logs
from scipy import ndimage
from skimage import filters, measure, morphology, segmentation

Array = NDArray[Any]
COINS = "coins"
SCIKIT_IMAGE = ("astronaut", "coffee", "chelsea", "rocket", "camera")
"""Pictures that the package of scikit-image carries itself."""
FOUND = 0.75
"""IoU from which a mask counts as one of the coins."""
DARK, BRIGHT, SMALLEST_COIN = 30, 150, 200


@dataclass(frozen=True)
class CoinScore:
    """How many of the ``coins`` some mask matches, and how many masks match no coin."""

    coins: int
    found: int
    unmatched: int


def coin_masks() -> list[Array]:
    """The 24 coins, bool ``[303,384]`` each.

    Watershed of the Sobel gradient from what is surely table and surely coin, after "Comparing
    edge-based and region-based segmentation" in scikit-image's gallery, opened to drop whiskers.
    """
    picture = skimage.data.coins()
    markers = np.where(picture < DARK, 1, np.where(picture > BRIGHT, 2, 0))
    regions = segmentation.watershed(filters.sobel(picture), markers)
    solid = ndimage.binary_fill_holes(regions == 2)
    labels = measure.label(morphology.opening(solid, morphology.disk(3)))
    areas = np.bincount(labels.ravel())
    return [labels == label for label in range(1, len(areas)) if areas[label] > SMALLEST_COIN]


def score_coins(masks: Sequence[Array]) -> CoinScore:
    """Compare masks ``[303,384]`` with the coins."""
    coins = np.array(coin_masks()).reshape(-1, 303 * 384).astype(np.float32)
    if not masks:
        return CoinScore(len(coins), 0, 0)
    flat = np.array(masks).reshape(len(masks), -1).astype(np.float32)
    common = flat @ coins.T
    iou = common / (flat.sum(1)[:, None] + coins.sum(1) - common)
    hits = iou >= FOUND
    return CoinScore(len(coins), int(hits.any(0).sum()), int((~hits.any(1)).sum()))


def photographs(names: Sequence[str], folder: Path | None) -> dict[str, Array]:
    """Uint8 RGB ``[h,w,3]`` by name: some of scikit-image's and the JPEGs of a folder."""
    found = {name: _rgb(getattr(skimage.data, name)()) for name in names}
    for path in sorted(folder.glob("*.jpg")) if folder else ():
        found[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    return found


def automask_all(
    repository: Path, pictures: dict[str, Array], out: Path
) -> dict[str, list[AutoMaskRecord]]:
    """Serve the models of a repository, ask for everything in each picture, draw the answers."""
    chosen = settings.load(
        {
            "server": {"port": 0, "admin_port": 0},
            "log": {"level": "warning"},
            "engine": {"model_repository": str(repository)},
        }
    )
    logs.configure(chosen.log)
    return asyncio.run(_automask_all(chosen, pictures, out))


async def _automask_all(
    chosen: settings.Settings, pictures: dict[str, Array], out: Path
) -> dict[str, list[AutoMaskRecord]]:
    answers = {}
    async with app.running(chosen) as service, Client(service.address) as client:
        for name, picture in pictures.items():
            path = out / f"{name}.png"
            Image.fromarray(picture).save(path)
            embedding = await client.embed(path)
            events = [event async for event in client.automask(embedding.id)]
            answers[name] = [event for event in events if isinstance(event, AutoMaskRecord)]
            overlay.draw_everything(picture, answers[name]).save(path)
    return answers


def _rgb(picture: Array) -> Array:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)
