"""Decoding of WebP files; the size is read before a decoder allocates its canvas."""

from __future__ import annotations

import struct
from functools import cached_property
from io import BytesIO

from PIL.ImageFile import ImageFile
from PIL.WebPImagePlugin import WebPImageFile

from samserve.images.errors import unreadable
from samserve.images.samples import PillowFile
from samserve.types import Size


def is_webp(data: bytes) -> bool:
    """Return whether a file begins with the WebP signature."""
    return data.startswith(b"RIFF") and data[8:12] == b"WEBP"


class Webp(PillowFile):
    """A WebP file; only its size is read before the first access."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = _size(data)

    @cached_property
    def _opened(self) -> ImageFile:
        opened = WebPImageFile(BytesIO(self._data))
        if Size(opened.height, opened.width) != self.size:
            raise unreadable("is corrupt: a WebP file with two different sizes")
        return opened


def _size(data: bytes) -> Size:
    """Return the canvas size of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
        return Size(height, width)
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return Size((bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return Size(height & 0x3FFF, width & 0x3FFF)
    raise unreadable("is a WebP file of an unknown kind")
