"""Conversion of image files that the server does not take to PNG, by Pillow.

Lossless: grey of up to 16 bits, colours of 8 bits and transparency are kept; of colours of 16 bits,
Pillow keeps 8.  The orientation of the file is kept in the PNG, and the server applies it.  Colour
profiles and other metadata, which the server would not use, are not kept.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image
from PIL.ImageFile import ImageFile

from samserve.client.channel import MAX_MESSAGE_BYTES
from samserve.client.errors import ImageTooLarge, ImageUnreadable

_ACCEPTED = "expected JPEG, PNG, WebP, or another format that Pillow reads, such as TIFF or BMP"
_ORIENTATION = ExifTags.Base.Orientation
# EPS is a program, which Pillow would run with Ghostscript.
_REJECTED = frozenset({"EPS"})
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})
_KEPT_MODES = frozenset({"1", "L", "LA", "RGB", "RGBA"})
# About 4 times as fast as the default level, for files that are a fifth larger.
_COMPRESS_LEVEL = 1

_FOREIGN_ERRORS = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemError,
    TypeError,
    ValueError,
    Warning,  # where warnings are errors
    struct.error,
    zlib.error,
)
"""Errors of Pillow's decoders for corrupt files."""

# Pillow applies the orientation of a TIFF when it decodes it; these operations revert that.
_INVERSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@dataclass(frozen=True, slots=True)
class Png:
    """A PNG file, and Pillow's name of the format that it was converted from, such as ``TIFF``."""

    data: bytes
    source: str


def to_png(file: BinaryIO, name: str) -> Png:
    """Convert the first image of a file; *name* is that of the file in errors.

    Reads only what that image needs.  Raises `ImageUnreadable`, and `ImageTooLarge` before anything
    is decoded if the image has more pixels than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    try:
        opened = _open(file, name)
    except Image.DecompressionBombError as error:
        # Some formats check the size of their first frame when they are opened.
        raise ImageTooLarge.of(name, _reason(error)) from error
    kind = opened.format or "image"
    _check_size(opened, name)
    with _foreign_errors(name, kind):
        stored, orientation = _decode(opened)
    plain = _plain(stored, name, kind)
    exif = Image.Exif()
    if orientation != 1:
        exif[_ORIENTATION] = orientation
    target = _Bounded(name)
    with _foreign_errors(name, kind):
        plain.save(target, "PNG", compress_level=_COMPRESS_LEVEL, exif=exif)
    return Png(target.getvalue(), kind)


def _open(file: BinaryIO, name: str) -> ImageFile:
    """Open a file as ``Image.open`` does, but without its warning for large images."""
    Image.init()
    prefix = file.read(16)
    if not prefix:
        raise ImageUnreadable.of(name, f"is empty: {_ACCEPTED}")
    if _is_heif(prefix) and "HEIF" not in Image.OPEN:
        _register_heif()
    reasons = []
    for kind in Image.ID:
        try:
            return _opened(kind, prefix, file)
        except _OtherFormat as error:
            reasons.append(str(error))
    known = _heic_hint(prefix) or next(filter(None, reasons), "")
    raise ImageUnreadable.of(name, known or f"is not an image: {_ACCEPTED}")


def _opened(kind: str, prefix: bytes, file: BinaryIO) -> ImageFile:
    """Open a file as one format.

    Raises `_OtherFormat`, with a text if the file seems to have this one.
    """
    factory, accepts = Image.OPEN[kind]
    found: bool | str = not accepts
    try:
        # Some of these functions require more than the first bytes of a short file.
        found = accepts(prefix) if accepts else True
        if found and not isinstance(found, str) and kind not in _REJECTED:
            file.seek(0)
            return factory(file, "")
    except _FOREIGN_ERRORS as error:
        # Formats without a function take any file.
        known = found and accepts is not None
        text = f"is a {kind} file that Pillow cannot read: {_reason(error)}" if known else ""
        raise _OtherFormat(text) from error
    if isinstance(found, str):
        raise _OtherFormat(f"cannot be read: {found}")
    raise _OtherFormat(f"is an {kind} file: save it as PNG" if found else "")


class _OtherFormat(Exception):
    """A file is not of a format, or cannot be opened as such."""


def _is_heif(prefix: bytes) -> bool:
    return prefix[4:8] == b"ftyp" and prefix[8:12] in _HEIF_BRANDS


def _register_heif() -> None:
    """Make Pillow read HEIC, if the package for it is installed."""
    with suppress(ImportError):
        import pillow_heif  # noqa: PLC0415 - optional

        pillow_heif.register_heif_opener()


def _heic_hint(prefix: bytes) -> str:
    if not _is_heif(prefix) or "HEIF" in Image.OPEN:
        return ""
    return "is a HEIC file: install its decoder with pip install pillow-heif, or save it as JPEG"


def _check_size(opened: ImageFile, name: str) -> None:
    limit = Image.MAX_IMAGE_PIXELS
    pixels = opened.width * opened.height
    if limit is not None and pixels > limit:
        text = (
            f"has {pixels} pixels, the limit for a conversion to PNG is {limit} "
            "(PIL.Image.MAX_IMAGE_PIXELS)"
        )
        raise ImageTooLarge.of(name, text, limit=limit, actual=pixels)


def _decode(opened: ImageFile) -> tuple[Image.Image, int]:
    """Return the pixels as the file stores them, and their orientation."""
    orientation = _orientation(opened)
    opened.load()
    if _orientation(opened) == orientation:
        return opened, orientation
    return opened.transpose(_INVERSE[orientation]), orientation


def _orientation(opened: Image.Image) -> int:
    value = opened.getexif().get(_ORIENTATION)
    return value if value in _INVERSE else 1


def _plain(image: Image.Image, name: str, kind: str) -> Image.Image:
    """Convert to a mode that PNG has, without metadata."""
    if image.mode.startswith("I"):
        return Image.fromarray(_grey16(image, name))
    if image.mode == "F":
        raise ImageUnreadable.of(name, "has 32-bit floats: scale them to 8 or 16 bits first")
    with _foreign_errors(name, kind):
        if image.has_transparency_data:
            plain = image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
        else:
            plain = image if image.mode in _KEPT_MODES else image.convert("RGB")
    plain.info = {}
    return plain


def _grey16(image: Image.Image, name: str) -> np.ndarray[tuple[int, int], np.dtype[np.uint16]]:
    """Return grey samples of up to 16 bits, uint16 ``[h, w]``."""
    values = np.asarray(image)
    if image.mode == "I" and not (values.min() >= 0 and values.max() <= 0xFFFF):
        text = f"has values from {values.min()} to {values.max()}: scale them to 0..65535 first"
        raise ImageUnreadable.of(name, text)
    return values.astype(np.uint16)


class _Bounded(io.BytesIO):
    """A file in memory that cannot become larger than a message."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data)) > MAX_MESSAGE_BYTES:
            text = f"is larger than {MAX_MESSAGE_BYTES >> 20} MiB as PNG"
            raise ImageTooLarge.of(self._name, text, limit=MAX_MESSAGE_BYTES)
        return super().write(data)


@contextmanager
def _foreign_errors(name: str, kind: str) -> Iterator[None]:
    """Convert Pillow's errors to `ImageUnreadable`, with Pillow's reason."""
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ImageTooLarge.of(name, _reason(error)) from error
    except _FOREIGN_ERRORS as error:
        text = f"is a {kind} file that Pillow cannot read: {_reason(error)}"
        raise ImageUnreadable.of(name, text) from error


def _reason(error: BaseException) -> str:
    return str(error)[:200] or type(error).__name__
