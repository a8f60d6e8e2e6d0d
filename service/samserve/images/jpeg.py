"""Decoding of JPEG files, including files without an end marker."""

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
from samserve.images.errors import unreadable
from samserve.images.jpeg_segments import START
from samserve.images.samples import PillowFile
from samserve.types import Size

__all__ = ["START", "Jpeg"]

_END = b"\xff\xd9"
_FILL_PATTERNS = (b"\xdb", b"\x33")
"""Of the patterns tried, the two with which no truncated file was accepted as complete."""
_MAX_EQUAL_BYTES = 16
"""Pixel data never ends in so many equal bytes; the filler of an incomplete file does."""


class Jpeg(PillowFile):
    """A JPEG file whose header has been read."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._file = jpeg_segments.read(data)
        self.size = Size(self._opened.height, self._opened.width)

    @cached_property
    def _opened(self) -> ImageFile:
        return _QuietJpeg(BytesIO(self._data))

    def _decode(self) -> Image.Image:
        return super()._decode() if self._file.has_end_marker else self._decode_without_end()

    def _decode_without_end(self) -> Image.Image:
        """Decode a file that lacks only its end marker.

        libjpeg invents missing pixels without an error.  Those pixels then depend on the bytes
        after the data; if nothing is missing, no pixel does.
        """
        data = self._data.rstrip(b"\xff")  # or it would form a marker with the next byte
        if not self._file.has_all_scans or len(set(data[-_MAX_EQUAL_BYTES:])) == 1:
            raise _truncated()
        decoded = _load(data + _END)
        pixels = _digest(decoded)
        if any(_digest(_load(data + fill + _END)) != pixels for fill in _continuations(data)):
            raise _truncated()
        return decoded


def _continuations(data: bytes) -> Iterator[bytes]:
    """Yield continuations of *data*: more blocks than an MCU has, and restart intervals."""
    in_scan = data.rfind(b"\xff\xda")
    last = max(range(8), key=lambda number: data.rfind(bytes([0xFF, 0xD0 + number]), in_scan))
    has_restarts = data.rfind(bytes([0xFF, 0xD0 + last]), in_scan) >= 0
    following = [(last + 1 + step) % 8 if has_restarts else step % 8 for step in range(16)]
    for bits in _FILL_PATTERNS:
        intervals = (bytes([0xFF, 0xD0 + number]) + bits * 100 for number in following)
        yield bits * 700 + b"".join(intervals)


def _digest(decoded: Image.Image) -> bytes:
    """Return a digest, so that the pixels of only one image are in memory."""
    return hashlib.sha256(decoded.tobytes()).digest()


def _truncated() -> ImageUnreadable:
    return unreadable("is truncated: a JPEG without its end marker and some of its pixels")


class _QuietJpeg(JpegImageFile):
    """A JPEG whose EXIF block is not parsed for a resolution on opening.

    Pillow's parser warns about corrupt blocks.  If Pillow renames the method, the warnings return.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


def _load(data: bytes) -> Image.Image:
    opened = _QuietJpeg(BytesIO(data))
    opened.load()
    return opened
