"""From the bytes of a request to RGB pixels, with every doubt an error of ours.

* JPEG, PNG and WebP, told by their first bytes; no other decoder ever runs.
* The size is read and checked before anything is decompressed.
* Greyscale is replicated, a palette resolved, CMYK converted by Pillow.  16-bit greyscale becomes
  ``round(v / 257)``; of 16-bit colour Pillow keeps the high byte.
* Transparency is composited over white.
* The EXIF orientation in the header is applied unless the request says otherwise.  An unreadable
  EXIF block means no orientation.
* Colour profiles are not applied.
* Animated and truncated files are refused, and files made of more parts than a picture needs.

Pillow's classes are used directly, not ``Image.open``: that checks sizes against a process-wide
limit and warns through the process-wide warnings registry.  Nothing here is shared by threads.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from samserve.core import file_parts
from samserve.errors import ImageTooLarge, ImageUnreadable, InvalidRequest
from samserve.types import EncodedImage, Orientation, RawImage, RawLayout, Size, UInt8Array

_ENCODED = "image.encoded"
_RAW_SIZE = "image.raw.size"
_RAW_DATA = "image.raw.data"

_FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,  # includes UnidentifiedImageError and "image file is truncated"
    RuntimeError,
    SyntaxError,  # Pillow's "this is no such file"
    TypeError,
    ValueError,
    Warning,  # where warnings are errors
    Image.DecompressionBombError,
    struct.error,
    zlib.error,
)
"""What Pillow lets out of its parsers for hostile bytes, found by fuzzing and reading."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset({5, 6, 7, 8})


class _QuietJpeg(JpegImageFile):
    """A JPEG whose EXIF block is not parsed for a resolution on opening.

    Pillow's parser warns about damaged blocks; should it rename the method, it warns again.
    """

    def _read_dpi_from_exif(self) -> None:
        pass


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What a picture may measure, in pixels, before orientation and after."""

    max_pixels: int
    max_side: int


def probe(image: EncodedImage | RawImage, limits: ImageLimits) -> Size:
    """Give the size of the picture in the image frame (after orientation) from its header.

    Raises ``ImageUnreadable``, ``ImageTooLarge`` or ``InvalidRequest``, as ``decode`` would;
    but what lies behind the header is not looked at.
    """
    if isinstance(image, RawImage):
        _check_raw(image, limits)
        return image.size
    with _pillow_errors():
        opened = _open(image.data, limits)
        sideways = _orientation(opened, image.orientation) in _SIDEWAYS
    return Size(opened.width, opened.height) if sideways else Size(opened.height, opened.width)


def decode(image: EncodedImage | RawImage, limits: ImageLimits) -> UInt8Array:
    """Decode to uint8 ``[h, w, 3]`` RGB, contiguous, in the image frame.

    Raises ``ImageUnreadable``, ``ImageTooLarge`` or ``InvalidRequest``.
    """
    if isinstance(image, RawImage):
        _check_raw(image, limits)
        return _raw_to_rgb(image)
    with _pillow_errors():
        opened = _open(image.data, limits)
        orientation = _orientation(opened, image.orientation)
        opened.load()
        rgb = _to_rgb(opened)
        if orientation in _TRANSPOSITIONS:
            rgb = rgb.transpose(_TRANSPOSITIONS[orientation])
        return np.array(rgb, dtype=np.uint8)


@contextmanager
def _pillow_errors() -> Iterator[None]:
    """Turn whatever Pillow raises into ``ImageUnreadable``; its text may quote the file."""
    try:
        yield
    except _FOREIGN_ERRORS as error:
        raise ImageUnreadable(_ENCODED, "is damaged, truncated or not a picture") from error


def _open(data: bytes, limits: ImageLimits) -> ImageFile:
    """Read the header, and refuse what is too large or moves."""
    reader = _reader(data)
    _check_parts(reader, data)
    if reader is WebPImageFile:  # allocates its canvas on opening
        _check_size(_ENCODED, _webp_size(data), limits)
    opened = reader(BytesIO(data))
    _check_size(_ENCODED, Size(opened.height, opened.width), limits)
    frames = int(getattr(opened, "n_frames", 1))
    if frames > 1:
        text = f"is animated with {frames} frames; send one still picture"
        raise ImageUnreadable(_ENCODED, text, metadata={"limit": "1", "actual": str(frames)})
    return opened


def _reader(data: bytes) -> Callable[[BytesIO], ImageFile]:
    """Choose the one decoder for these bytes."""
    if not data:
        raise ImageUnreadable(_ENCODED, "is empty")
    if data.startswith(b"\xff\xd8\xff"):
        return _QuietJpeg
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImageFile
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WebPImageFile
    raise ImageUnreadable(_ENCODED, "is not a JPEG, PNG or WebP file")


def _check_parts(reader: Callable[[BytesIO], ImageFile], data: bytes) -> None:
    """Refuse a file that is made to keep its decoder busy."""
    try:
        if reader is _QuietJpeg:
            file_parts.check_jpeg(data)
        if reader is PngImageFile:
            file_parts.check_png(data)
    except file_parts.TooManyParts as error:
        raise ImageUnreadable(_ENCODED, f"has too many {error}; save it anew") from error


def _webp_size(data: bytes) -> Size:
    """Read the canvas size of a WebP file (RFC 9649, sections 2.5 to 2.7)."""
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
    raise ImageUnreadable(_ENCODED, "is a WebP file of an unknown kind")


def _check_size(field: str, size: Size, limits: ImageLimits) -> None:
    """Raise ``ImageTooLarge`` if the picture is over a limit."""
    longest = max(size.height, size.width)
    for actual, limit, what in (
        (longest, limits.max_side, "on its longer side"),
        (size.pixels, limits.max_pixels, "in all"),
    ):
        if actual > limit:
            text = f"has {actual} pixels {what}, the limit is {limit}"
            metadata = {"limit": str(limit), "actual": str(actual)}
            raise ImageTooLarge(field, text, metadata=metadata)


def _orientation(opened: ImageFile, wanted: Orientation) -> int:
    """Read the EXIF orientation, 1 to 8, of an opened but not yet loaded file; 1 is upright.

    Not Pillow's ``getexif``, which warns about damaged blocks and loads the whole of a PNG.
    """
    exif = opened.info.get("exif")
    if wanted is Orientation.IGNORE or not isinstance(exif, bytes):
        return 1
    try:
        return _tiff_orientation(exif.removeprefix(b"Exif\x00\x00"))
    except struct.error:
        return 1


def _tiff_orientation(tiff: bytes) -> int:
    """Look the tag 0x0112 up in the first directory of a TIFF block."""
    order = {b"II*\x00": "<", b"MM\x00*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    (directory,) = struct.unpack_from(f"{order}I", tiff, 4)
    (entries,) = struct.unpack_from(f"{order}H", tiff, directory)
    for entry in range(entries):
        tag, kind, _, value = struct.unpack_from(f"{order}HHIH", tiff, directory + 2 + 12 * entry)
        if tag == 0x0112:
            return value if kind == 3 and value in _TRANSPOSITIONS else 1
    return 1


def _to_rgb(opened: Image.Image) -> Image.Image:
    """Convert any mode that the three decoders produce."""
    if opened.mode.startswith("I"):
        deep = np.asarray(opened).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if opened.mode in {"LA", "PA", "RGBA"} or "transparency" in opened.info:
        rgba = opened.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return opened.convert("RGB")


def _check_raw(image: RawImage, limits: ImageLimits) -> None:
    """Check the size, and that the bytes are as many as it says."""
    size = image.size
    if size.height < 1 or size.width < 1:
        text = f"must be positive, not {size.height} x {size.width}"
        metadata = {"height": str(size.height), "width": str(size.width)}
        raise InvalidRequest(_RAW_SIZE, text, metadata=metadata)
    _check_size(_RAW_SIZE, size, limits)
    expected = size.pixels * image.layout.channels
    if len(image.data) != expected:
        text = f"must have {expected} bytes (height * width * channels), not {len(image.data)}"
        metadata = {"expected": str(expected), "actual": str(len(image.data))}
        raise InvalidRequest(_RAW_DATA, text, metadata=metadata)


def _raw_to_rgb(image: RawImage) -> UInt8Array:
    """Bring raw pixels into RGB order, as a copy."""
    shape = (image.size.height, image.size.width, image.layout.channels)
    pixels = np.frombuffer(image.data, dtype=np.uint8).reshape(shape)
    if image.layout is RawLayout.GRAY:
        return np.repeat(pixels, 3, axis=2)
    if image.layout is RawLayout.BGR:
        pixels = pixels[:, :, ::-1]
    return np.array(pixels, dtype=np.uint8, order="C")
