"""PNG files: decoding, with transparency compared in the depth of the file."""

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

_DEEP = 16
_LITTLE_ENDIAN = {png_chunks.RGB: "RGB;16L", png_chunks.RGBA: "RGBA;16L"}


class Png:
    """A PNG file whose header has been read; the pixels are decoded by each call."""

    def __init__(self, data: bytes) -> None:
        self._file = file = png_chunks.read(data)
        self.size, self.exif, self.frames = file.size, file.exif, file.frames

    def rgb(self) -> Image.Image:
        """Decode to RGB over white."""
        decoded = _loaded(self._file.for_decoder())
        # Before anything else is made of it, so that less is held at a time.
        transparent = None if self._file.transparent is None else self._transparent(decoded)
        rgb = _narrowed(decoded) if self._deep_grey else samples.over_white(decoded)
        if transparent is not None:
            rgb.paste((255, 255, 255), mask=Image.fromarray(transparent))
        return rgb

    def marked(self) -> BoolArray:
        """Tell which pixels are neither black, in the depth of the file, nor transparent."""
        decoded = _loaded(self._file.for_decoder())
        if self._deep_grey:
            found: BoolArray = np.asarray(decoded) != 0
        elif self._file.depth == _DEEP:
            found = self._marked_in_depth(decoded)
        else:
            found = samples.marked(decoded)
        return found if self._file.transparent is None else found & ~self._transparent(decoded)

    @property
    def _deep_grey(self) -> bool:
        return self._file.depth == _DEEP and self._file.colour == GREY

    def _marked_in_depth(self, high: Image.Image) -> BoolArray:
        low, colours = self._low_bytes().split(), 1 if self._file.colour == GREY_ALPHA else 3
        # Pillow gives grey with alpha as RGBA; the first band is enough of it.
        found = samples.any_of((*high.split()[:colours], *low[:colours]))
        if high.mode == "RGBA":
            found &= samples.any_of((high.getchannel("A"), low[-1]))
        return found

    def _transparent(self, decoded: Image.Image) -> BoolArray:
        """Tell where the transparent colour is, in the samples that the file has."""
        key, depth = self._file.transparent or (), self._file.depth
        if self._deep_grey:
            return np.asarray(np.asarray(decoded) == key[0])
        if depth == _DEEP:
            high = _equal(decoded, [value >> 8 for value in key])
            return high & _equal(self._low_bytes(), [value & 255 for value in key])
        # Pillow has spread the samples over 0 to 255.
        step = 255 // ((1 << depth) - 1)
        plain = decoded.convert("L") if decoded.mode == "1" else decoded
        return _equal(plain, [value * step for value in key])

    def _low_bytes(self) -> Image.Image:
        """Decode once more, to the low bytes of colours of 16 bits, of which Pillow drops them.

        In the other byte order the low byte is the one that it keeps.  For grey with alpha it has
        no other order, but 8 bits of RGBA have the same bytes.
        """
        if self._file.colour != GREY_ALPHA:
            return _loaded(self._file.for_decoder(), _LITTLE_ENDIAN[self._file.colour])
        size, interlaced = self._file.size, int(self._file.interlaced)
        fields = (size.width, size.height, 8, png_chunks.RGBA, 0, 0, interlaced)
        header = struct.pack(">IIBBBBB", *fields)
        bands = _loaded(self._file.for_decoder(header=header)).split()
        return Image.merge("LA", (bands[1], bands[3]))


def _loaded(file: bytes, raw_mode: str | None = None) -> Image.Image:
    opened = PngImageFile(BytesIO(file))
    if raw_mode is not None:
        opened.tile = [tile._replace(args=raw_mode) for tile in opened.tile]
    opened.load()
    return opened


def _narrowed(grey: Image.Image) -> Image.Image:
    """Turn grey of 16 bits into RGB of 8."""
    deep = np.asarray(grey).astype(np.uint32)
    deep += 128
    deep //= 257
    return Image.fromarray(deep.astype(np.uint8)).convert("RGB")


def _equal(decoded: Image.Image, values: list[int]) -> BoolArray:
    """Tell which pixels have these values in their bands: bool ``[h, w]``."""
    found: BoolArray = np.ones((decoded.height, decoded.width), dtype=np.bool_)
    for number, value in enumerate(values):
        found &= np.asarray(decoded.getchannel(number)) == value
    return found
