"""From what Pillow decodes to RGB over white, or to which pixels a mask marks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from samserve.types import BoolArray, Size

_WITH_ALPHA = frozenset({"LA", "PA", "RGBA"})


class PillowFile(ABC):
    """A file of 8 bits per sample; *size* is that of the pixels in it."""

    size: Size

    @cached_property
    @abstractmethod
    def _opened(self) -> ImageFile: ...

    @property
    def exif(self) -> bytes | None:
        """The EXIF block."""
        exif = self._opened.info.get("exif")
        return exif if isinstance(exif, bytes) else None

    @property
    def frames(self) -> int:
        """How many images there are in the file."""
        return int(getattr(self._opened, "n_frames", 1))

    def rgb(self) -> Image.Image:
        """Decode to RGB over white."""
        return over_white(self._decoded())

    def marked(self) -> BoolArray:
        """Tell which pixels are neither black nor transparent."""
        return marked(self._decoded())

    def _decoded(self) -> Image.Image:
        self._opened.load()
        return self._opened


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
