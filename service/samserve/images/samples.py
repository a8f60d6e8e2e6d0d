"""From what Pillow has decoded to RGB over white, or to which pixels a mask marks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from samserve.types import BoolArray

_WITH_ALPHA = frozenset({"LA", "PA", "RGBA"})


def over_white(decoded: Image.Image) -> Image.Image:
    """Convert any mode of 8 bits to RGB, transparency laid over white."""
    if decoded.mode in _WITH_ALPHA or "transparency" in decoded.info:
        rgba = _as(decoded, "RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _as(decoded, "RGB")


def marked(decoded: Image.Image) -> BoolArray:
    """Tell which pixels are neither black nor wholly transparent: bool ``[h, w]``."""
    if decoded.mode in _WITH_ALPHA or "transparency" in decoded.info:
        *colour, alpha = _as(decoded, "RGBA").split()
        found = any_of(colour)
        found &= np.asarray(alpha) != 0
        return found
    return any_of(_as(decoded, "RGB").split())


def _as(decoded: Image.Image, mode: str) -> Image.Image:
    """Convert, without the copy that Pillow makes of what has the mode already."""
    return decoded if decoded.mode == mode else decoded.convert(mode)


def any_of(bands: Sequence[Image.Image]) -> BoolArray:
    """Tell which pixels are not 0 in every band: bool ``[h, w]``."""
    found: BoolArray = np.asarray(bands[0]) != 0
    for band in bands[1:]:
        found |= np.asarray(band) != 0
    return found
