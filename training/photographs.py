"""AutoMask of the service on photographs, over gRPC with the API's defaults.

The outlines of scikit-image's ``coins`` do not need a model: `coin_masks` finds all 24 by classical
segmentation; they were checked by eye.
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
"""Photos that are part of the scikit-image package."""
MIN_COIN_IOU = 0.75
"""Minimum IoU of a mask that counts as one of the coins."""
DARK, BRIGHT, MIN_COIN_AREA = 30, 150, 200


@dataclass(frozen=True)
class CoinScore:
    """Number of ``coins``, of those that a mask matches, and of masks that match no coin."""

    coins: int
    found: int
    unmatched: int


def coin_masks() -> list[Array]:
    """Return the 24 coins, bool ``[303,384]`` each.

    Watershed of the Sobel gradient from certain background and certain coin pixels, after
    "Comparing edge-based and region-based segmentation" in scikit-image's gallery, with a
    morphological opening to remove thin artefacts.
    """
    image = skimage.data.coins()
    markers = np.where(image < DARK, 1, np.where(image > BRIGHT, 2, 0))
    regions = segmentation.watershed(filters.sobel(image), markers)
    solid = ndimage.binary_fill_holes(regions == 2)
    labels = measure.label(morphology.opening(solid, morphology.disk(3)))
    areas = np.bincount(labels.ravel())
    return [labels == label for label in range(1, len(areas)) if areas[label] > MIN_COIN_AREA]


def score_coins(masks: Sequence[Array]) -> CoinScore:
    """Return the score of masks ``[303,384]`` against the coins."""
    coins = np.array(coin_masks()).reshape(-1, 303 * 384).astype(np.float32)
    if not masks:
        return CoinScore(len(coins), 0, 0)
    flat = np.array(masks).reshape(len(masks), -1).astype(np.float32)
    overlap = flat @ coins.T
    iou = overlap / (flat.sum(1)[:, None] + coins.sum(1) - overlap)
    matches = iou >= MIN_COIN_IOU
    return CoinScore(len(coins), int(matches.any(0).sum()), int((~matches.any(1)).sum()))


def photographs(names: Sequence[str], folder: Path | None) -> dict[str, Array]:
    """Return uint8 RGB ``[h,w,3]`` by name: photos of scikit-image and the JPEGs of a folder."""
    found = {name: _rgb(getattr(skimage.data, name)()) for name in names}
    for path in sorted(folder.glob("*.jpg")) if folder else ():
        found[path.stem] = np.asarray(Image.open(path).convert("RGB"))
    return found


def automask_all(
    repository: Path, images: dict[str, Array], out: Path
) -> dict[str, list[AutoMaskRecord]]:
    """Serve the models of a repository, run AutoMask on each image, and draw the masks."""
    chosen = settings.load(
        {
            "server": {"port": 0, "admin_port": 0},
            "log": {"level": "warning"},
            "engine": {"model_repository": str(repository)},
        }
    )
    logs.configure(chosen.log)
    return asyncio.run(_automask_all(chosen, images, out))


async def _automask_all(
    chosen: settings.Settings, images: dict[str, Array], out: Path
) -> dict[str, list[AutoMaskRecord]]:
    records = {}
    async with app.running(chosen) as service, Client(service.address) as client:
        for name, image in images.items():
            path = out / f"{name}.png"
            Image.fromarray(image).save(path)
            embedding = await client.embed(path)
            events = [event async for event in client.automask(embedding.id)]
            records[name] = [event for event in events if isinstance(event, AutoMaskRecord)]
            overlay.draw_masks(image, records[name]).save(path)
    return records


def _rgb(image: Array) -> Array:
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
