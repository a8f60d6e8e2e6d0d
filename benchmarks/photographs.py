"""The photographs that are measured, from the data of scikit-image, as JPEG files."""

from __future__ import annotations

import functools
import io

import numpy as np
import skimage.data
from PIL import Image

QUALITY = 92


@functools.cache
def photograph(width: int, height: int) -> bytes:
    """Return a photograph of a cup of coffee, of that size."""
    return _resized(skimage.data.coffee(), width, height)


@functools.cache
def coins(width: int = 384, height: int = 303) -> bytes:
    """Return a photograph of coins, which the default model segments; larger ones are upscaled."""
    return _resized(np.repeat(skimage.data.coins()[..., None], 3, axis=2), width, height)


def jpeg(pixels: np.ndarray) -> bytes:
    """Return a JPEG file of an RGB image uint8 ``[H,W,3]``."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def decoded(image: bytes) -> np.ndarray:
    """Return the pixels of an image file, RGB uint8 ``[H,W,3]``."""
    return np.asarray(Image.open(io.BytesIO(image)).convert("RGB"))


def _resized(pixels: np.ndarray, width: int, height: int) -> bytes:
    """Return the largest central part that has the aspect ratio, in that size."""
    rows, columns = pixels.shape[:2]
    scale = min(columns / width, rows / height)
    left, top = (columns - scale * width) / 2, (rows - scale * height) / 2
    box = (left, top, left + scale * width, top + scale * height)
    image = Image.fromarray(pixels)
    return jpeg(np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=box)))
