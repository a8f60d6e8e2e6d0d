"""Conversion of Pillow's decoded images to RGB on white, or to a mask's foreground."""

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
    """A file of 8 bits per sample; *size* is that before orientation."""

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
        """Number of images in the file."""
        return int(getattr(self._opened, "n_frames", 1))

    def rgb(self) -> Image.Image:
        """Decode to RGB, blended with white."""
        return blend_with_white(self._decode())

    def foreground(self) -> BoolArray:
        """Return which pixels are neither black nor transparent: bool ``[h, w]``."""
        return foreground(self._decode())

    def _decode(self) -> Image.Image:
        self._opened.load()
        return self._opened


def blend_with_white(decoded: Image.Image) -> Image.Image:
    """Convert any 8-bit mode to RGB, with transparency blended with white."""
    if decoded.mode in _WITH_ALPHA or "transparency" in decoded.info:
        rgba = _convert(decoded, "RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return _convert(decoded, "RGB")


def foreground(decoded: Image.Image) -> BoolArray:
    """Return which pixels are neither black nor fully transparent: bool ``[h, w]``."""
    if decoded.mode in _WITH_ALPHA or "transparency" in decoded.info:
        *colour, alpha = _convert(decoded, "RGBA").split()
        mask = any_nonzero(colour)
        mask &= np.asarray(alpha) != 0
        return mask
    return any_nonzero(_convert(decoded, "RGB").split())


def _convert(decoded: Image.Image, mode: str) -> Image.Image:
    """Convert to *mode*, without Pillow's copy of an image that has it already."""
    return decoded if decoded.mode == mode else decoded.convert(mode)


def any_nonzero(bands: Sequence[Image.Image]) -> BoolArray:
    """Return which pixels are not 0 in at least one band: bool ``[h, w]``."""
    mask: BoolArray = np.asarray(bands[0]) != 0
    for band in bands[1:]:
        mask |= np.asarray(band) != 0
    return mask
