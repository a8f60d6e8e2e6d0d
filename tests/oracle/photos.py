"""Photos of unusual sizes, RGB uint8, from the data of scikit-image."""

from __future__ import annotations

import numpy as np
import skimage.data
from PIL import Image


def calibration() -> list[np.ndarray]:
    """Return three photos for calibration; comparisons use others or other sizes."""
    return [skimage.data.chelsea(), skimage.data.rocket(), skimage.data.retina()[300:900, 200:900]]


def coffee_427x640() -> np.ndarray:
    """Return a landscape photo, smaller than the model frame."""
    return _resized(skimage.data.coffee(), width=640, height=427)


def retina_1411x1411() -> np.ndarray:
    """Return a square photo, which needs no padding."""
    return np.ascontiguousarray(skimage.data.retina()[:, :, :3])


def hubble_1800x1200() -> np.ndarray:
    """Return a portrait photo, larger than the model frame; there 1024 rows by 683 columns."""
    return _resized(skimage.data.hubble_deep_field(), width=1200, height=1800)


def _resized(photo: np.ndarray, *, width: int, height: int) -> np.ndarray:
    image = Image.fromarray(photo[:, :, :3])
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
