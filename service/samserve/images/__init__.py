"""Decoding of image files to RGB pixels; every ambiguity in a file is an error.

* JPEG, PNG and WebP, recognised by their first bytes; no other decoder ever runs.
* The size is read and checked before anything is decompressed.
* Greyscale is replicated, a palette resolved, CMYK converted by Pillow.  16-bit greyscale becomes
  ``round(v / 257)``; of other 16-bit samples Pillow keeps the high byte.
* Transparent pixels are blended with white.  The transparent colour of a PNG is compared at the
  bit depth of the file.
* The EXIF orientation is applied unless the request says otherwise.  An unreadable EXIF block means
  no orientation.
* Colour profiles, gamma and background colours are not applied.
* Animated and truncated files are invalid, and so are files of more parts than an image needs.
* A mask (`decode_mask`) is read by the same decoders: foreground is neither black nor transparent.

Pillow's classes are used directly, not ``Image.open``: that checks sizes against a process-wide
limit and warns through the process-wide warnings registry.  Threads share no state here.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image

from samserve.errors import ImageTooLarge
from samserve.images import exif, jpeg, png, raw, webp
from samserve.images.errors import ENCODED, unreadable
from samserve.images.jpeg import Jpeg
from samserve.images.png import Png
from samserve.images.webp import Webp
from samserve.types import BoolArray, EncodedImage, Orientation, RawImage, Size, UInt8Array

__all__ = ["ImageLimits", "check_size", "decode", "decode_mask", "probe", "read", "to_array"]

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
"""Errors of Pillow's parsers on malicious bytes, found by fuzzing and by reading its source."""

_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPPED_SIDES = frozenset({5, 6, 7, 8})


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """The largest image, in pixels; holds before and after orientation."""

    max_pixels: int
    max_side: int


def probe(image: EncodedImage | RawImage, limits: ImageLimits) -> Size:
    """Return the size of the image in the image frame (after orientation) from its header.

    Raises ``ImageUnreadable``, ``ImageTooLarge`` or ``InvalidRequest``, as ``decode`` does,
    except that corrupt pixel data is not detected.
    """
    if isinstance(image, RawImage):
        _check_raw(image, limits)
        return image.size
    with _open_image(image, limits) as (file, orientation):
        size = file.size
        return Size(size.width, size.height) if orientation in _SWAPPED_SIDES else size


def read(image: EncodedImage | RawImage, limits: ImageLimits) -> Image.Image:
    """Decode to Pillow's RGB image, in the image frame.

    Pillow resizes it without a copy; an array of it (`decode`) takes as long as a third of the
    decoding of a JPEG.  Raises ``ImageUnreadable``, ``ImageTooLarge`` or ``InvalidRequest``.
    """
    if isinstance(image, RawImage):
        _check_raw(image, limits)
        return raw.to_rgb(image)
    with _open_image(image, limits) as (file, orientation):
        return _apply_orientation(file.rgb(), orientation)


def decode(image: EncodedImage | RawImage, limits: ImageLimits) -> UInt8Array:
    """Decode to uint8 ``[h, w, 3]`` RGB, contiguous and read-only, in the image frame.

    Raises as `read` does.
    """
    return to_array(read(image, limits))


def to_array(image: Image.Image) -> UInt8Array:
    """Return the pixels of an RGB image: uint8 ``[h, w, 3]``, contiguous and read-only."""
    return np.asarray(image, dtype=np.uint8)


def decode_mask(image: EncodedImage, limits: ImageLimits) -> BoolArray:
    """Decode a mask to its foreground pixels: bool ``[h, w]`` in the image frame.

    A pixel is foreground if it is neither black, at the full bit depth of the file, nor fully
    transparent.  Raises ``ImageUnreadable`` or ``ImageTooLarge``.
    """
    with _open_image(image, limits) as (file, orientation):
        return np.array(
            _apply_orientation(Image.fromarray(file.foreground()), orientation), dtype=np.bool_
        )


@contextmanager
def _open_image(
    image: EncodedImage, limits: ImageLimits
) -> Iterator[tuple[Jpeg | Png | Webp, int]]:
    """Yield the file with its header read, and the orientation to apply.

    Any error of Pillow becomes ``ImageUnreadable`` without its text, which may quote the file.
    """
    try:
        file = _read_header(image.data, limits)
        ignore = image.orientation is Orientation.IGNORE
        yield file, exif.UPRIGHT if ignore else exif.orientation(file.exif)
    except _FOREIGN_ERRORS as error:
        raise unreadable("is corrupt, truncated or not an image") from error


def _read_header(data: bytes, limits: ImageLimits) -> Jpeg | Png | Webp:
    """Read the header by the decoder for these bytes; reject large and animated images."""
    if not data:
        raise unreadable("is empty")
    file: Jpeg | Png | Webp
    if data.startswith(jpeg.START):
        file = Jpeg(data)
    elif data.startswith(png.SIGNATURE):
        file = Png(data)
    elif webp.is_webp(data):
        file = Webp(data)
    else:
        raise unreadable("is not a JPEG, PNG or WebP file")
    check_size(ENCODED, file.size, limits)
    if file.frames > 1:
        text = f"is animated with {file.frames} frames; send one still image"
        raise unreadable(text, limit="1", actual=str(file.frames))
    return file


def check_size(field: str, size: Size, limits: ImageLimits) -> None:
    """Raise ``ImageTooLarge``, which names *field*, if an image of this size is over a limit."""
    longest = max(size.height, size.width)
    for actual, limit, what in (
        (longest, limits.max_side, "on its longer side"),
        (size.pixels, limits.max_pixels, "in all"),
    ):
        if actual > limit:
            text = f"has {actual} pixels {what}, the limit is {limit}"
            metadata = {"limit": str(limit), "actual": str(actual)}
            raise ImageTooLarge(field, text, metadata=metadata)


def _apply_orientation(decoded: Image.Image, orientation: int) -> Image.Image:
    if orientation not in _TRANSPOSITIONS:
        return decoded
    return decoded.transpose(_TRANSPOSITIONS[orientation])


def _check_raw(image: RawImage, limits: ImageLimits) -> None:
    """Check the size, and that the number of bytes matches it."""
    raw.check_size(image)
    check_size(raw.SIZE, image.size, limits)
    raw.check_data(image)
