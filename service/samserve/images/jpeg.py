"""JPEG files: decoding, also of files without their end marker."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO

from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile

from samserve.errors import ImageUnreadable
from samserve.images import jpeg_segments
from samserve.images.jpeg_segments import START
from samserve.images.refusal import unreadable
from samserve.images.samples import PillowFile
from samserve.types import Size

__all__ = ["START", "Jpeg"]

_END = b"\xff\xd9"
_PATTERNS = (b"\xdb", b"\x33")
"""Of the patterns that were tried, the two with which no cut file was taken for a whole one."""
_LONGEST_RUN = 16
"""Pixel data of an image is never the same byte for so long at its end; what fills a file is."""


class Jpeg(PillowFile):
    """A JPEG file whose header has been read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._file = jpeg_segments.read(data)
        self.size = Size(self._opened.height, self._opened.width)

    @cached_property
    def _opened(self) -> ImageFile:
        return _QuietJpeg(BytesIO(self._data))

    def _decoded(self) -> Image.Image:
        return super()._decoded() if self._file.ended else self._without_end()

    def _without_end(self) -> Image.Image:
        """Decode a file that lacks its end marker, if it lacks nothing else.

        libjpeg makes up what is missing and does not say so.  But then the pixels depend on what
        follows the data, and else they do not.
        """
        data = self._data.rstrip(b"\xff")  # else it would make a marker of what follows
        if not self._file.has_all_scans or len(set(data[-_LONGEST_RUN:])) == 1:
            raise _cut()
        decoded = _loaded(data + _END)
        pixels = _digest(decoded)
        if any(_digest(_loaded(data + fill + _END)) != pixels for fill in _fills(data)):
            raise _cut()
        return decoded


def _fills(data: bytes) -> Iterator[bytes]:
    """Make what could go on after *data*: more blocks than an MCU has, and restart intervals."""
    in_scan = data.rfind(b"\xff\xda")
    last = max(range(8), key=lambda number: data.rfind(bytes([0xFF, 0xD0 + number]), in_scan))
    found = data.rfind(bytes([0xFF, 0xD0 + last]), in_scan) >= 0
    following = [(last + 1 + step) % 8 if found else step % 8 for step in range(16)]
    for bits in _PATTERNS:
        intervals = (bytes([0xFF, 0xD0 + number]) + bits * 100 for number in following)
        yield bits * 700 + b"".join(intervals)


def _digest(decoded: Image.Image) -> bytes:
    """Compare by digests: the pixels of one image are enough to hold."""
    return hashlib.sha256(decoded.tobytes()).digest()


def _cut() -> ImageUnreadable:
    return unreadable("is cut off: a JPEG without its end marker and some of its pixels")


class _QuietJpeg(JpegImageFile):
    """A JPEG whose EXIF block is not parsed for a resolution on opening.

    Pillow's parser warns about damaged blocks; should it rename the method, it warns again.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _loaded(data: bytes) -> Image.Image:
    opened = _QuietJpeg(BytesIO(data))
    opened.load()
    return opened
