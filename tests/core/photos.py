"""Photos of unusual sizes, cropped and resized from those of scikit-image."""

from __future__ import annotations

import numpy as np
from PIL import Image
from samserve.types import UInt8Array
from skimage import data


def named(name: str) -> UInt8Array:
    """Load a photo of scikit-image, whose functions have no types."""
    return np.asarray(getattr(data, name)(), dtype=np.uint8)


def resized(rgb: UInt8Array, height: int, width: int) -> UInt8Array:
    """Resize a photo."""
    image = Image.fromarray(rgb).resize((width, height), Image.Resampling.LANCZOS)
    return np.asarray(image, dtype=np.uint8)


def odd_sizes() -> dict[str, UInt8Array]:
    """Return landscape, portrait, square and panorama, smaller and larger than the model frame."""
    return {
        "chelsea 300x451": named("chelsea"),
        "rocket 427x640": named("rocket"),
        "retina 1411x1411": named("retina"),
        "coffee 1080x1920": resized(named("coffee"), 1080, 1920),
        "astronaut 1031x761": resized(named("astronaut"), 1031, 761),
        "coffee panorama 97x1500": resized(named("coffee")[100:140], 97, 1500),
        "astronaut model size": resized(named("astronaut"), 1024, 1024),
    }
