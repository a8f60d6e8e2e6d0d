"""Real photographs, from scikit-image."""

from __future__ import annotations

from functools import cache
from io import BytesIO

import numpy as np
import skimage.data
from PIL import Image


@cache
def files() -> tuple[bytes, ...]:
    """Return three small photographs as JPEG files: a person, a cup of coffee, a cat."""
    return tuple(
        _jpeg(pixels)
        for pixels in (skimage.data.astronaut(), skimage.data.coffee(), skimage.data.chelsea())
    )


def _jpeg(pixels: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def pixels(data: bytes) -> np.ndarray:
    """Decode a file to uint8 RGB ``[h, w, 3]``."""
    return np.asarray(Image.open(BytesIO(data)).convert("RGB"))
