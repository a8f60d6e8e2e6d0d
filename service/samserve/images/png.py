"""Decoding of PNG files; the transparent colour is compared at the bit depth of the file."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from samserve.images import png_chunks, samples
from samserve.images.png_chunks import GREY, GREY_ALPHA, SIGNATURE
from samserve.types import BoolArray

__all__ = ["SIGNATURE", "Png"]

_BITS_16 = 16
_LITTLE_ENDIAN = {png_chunks.RGB: "RGB;16L", png_chunks.RGBA: "RGBA;16L"}


class Png:
    """A PNG file whose header has been read; the pixels are decoded by each call."""

    def __init__(self, data: bytes) -> None:
        self._file = file = png_chunks.read(data)
        self.size, self.exif, self.frames = file.size, file.exif, file.frames

    def rgb(self) -> Image.Image:
        """Decode to RGB, blended with white."""
        decoded = _load(self._file.for_decoder())
        # Computed before any conversion, to lower the peak of memory.
        transparent = None if self._file.transparent is None else self._transparent_pixels(decoded)
        rgb = _grey16_to_rgb(decoded) if self._is_grey16 else samples.blend_with_white(decoded)
        if transparent is not None:
            rgb.paste((255, 255, 255), mask=Image.fromarray(transparent))
        return rgb

    def foreground(self) -> BoolArray:
        """Return which pixels are neither black, at the bit depth of the file, nor transparent."""
        decoded = _load(self._file.for_decoder())
        if self._is_grey16:
            mask: BoolArray = np.asarray(decoded) != 0
        elif self._file.depth == _BITS_16:
            mask = self._foreground_16bit(decoded)
        else:
            mask = samples.foreground(decoded)
        return mask if self._file.transparent is None else mask & ~self._transparent_pixels(decoded)

    @property
    def _is_grey16(self) -> bool:
        return self._file.depth == _BITS_16 and self._file.colour == GREY

    def _foreground_16bit(self, high: Image.Image) -> BoolArray:
        low, colours = self._decode_low_bytes().split(), 1 if self._file.colour == GREY_ALPHA else 3
        # Pillow decodes grey with alpha to RGBA; its first band has the grey.
        mask = samples.any_nonzero((*high.split()[:colours], *low[:colours]))
        if high.mode == "RGBA":
            mask &= samples.any_nonzero((high.getchannel("A"), low[-1]))
        return mask

    def _transparent_pixels(self, decoded: Image.Image) -> BoolArray:
        """Return which pixels have the transparent colour, at the bit depth of the file."""
        key, depth = self._file.transparent or (), self._file.depth
        if self._is_grey16:
            return np.asarray(np.asarray(decoded) == key[0])
        if depth == _BITS_16:
            high = _pixels_equal(decoded, [value >> 8 for value in key])
            return high & _pixels_equal(self._decode_low_bytes(), [value & 255 for value in key])
        # Pillow has scaled the samples to 0..255.
        step = 255 // ((1 << depth) - 1)
        plain = decoded.convert("L") if decoded.mode == "1" else decoded
        return _pixels_equal(plain, [value * step for value in key])

    def _decode_low_bytes(self) -> Image.Image:
        """Decode again to the low bytes of 16-bit colours, which Pillow drops.

        In the other byte order Pillow keeps the low byte.  For grey with alpha it has no other
        byte order, but RGBA of 8 bits has the same layout.
        """
        if self._file.colour != GREY_ALPHA:
            return _load(self._file.for_decoder(), _LITTLE_ENDIAN[self._file.colour])
        size, interlaced = self._file.size, int(self._file.interlaced)
        fields = (size.width, size.height, 8, png_chunks.RGBA, 0, 0, interlaced)
        header = struct.pack(">IIBBBBB", *fields)
        bands = _load(self._file.for_decoder(header=header)).split()
        return Image.merge("LA", (bands[1], bands[3]))


def _load(file: bytes, raw_mode: str | None = None) -> Image.Image:
    opened = PngImageFile(BytesIO(file))
    if raw_mode is not None:
        opened.tile = [tile._replace(args=raw_mode) for tile in opened.tile]
    opened.load()
    return opened


def _grey16_to_rgb(grey: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8-bit RGB."""
    values = np.asarray(grey).astype(np.uint32)
    values += 128
    values //= 257
    return Image.fromarray(values.astype(np.uint8)).convert("RGB")


def _pixels_equal(decoded: Image.Image, values: list[int]) -> BoolArray:
    """Return which pixels have these values in their bands: bool ``[h, w]``."""
    mask: BoolArray = np.ones((decoded.height, decoded.width), dtype=np.bool_)
    for number, value in enumerate(values):
        mask &= np.asarray(decoded.getchannel(number)) == value
    return mask
