"""Image files of a data set: where they are, and their size as displayed.

Coordinates of every format are in the image as displayed, after its EXIF orientation, as in
samserve: a photo of 4000x3000 pixels that is to be turned by 90 degrees is one of 3000x4000.
"""

from __future__ import annotations

import functools
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath

import numpy as np
from PIL import ExifTags, Image, ImageOps

from samserve.datasets.files import check_name
from samserve.errors import InvalidRequest
from samserve.types import Size, UInt8Array

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".heic", ".heif"}
)
_SWAPPED_SIDES = frozenset({5, 6, 7, 8})
# Pillow opens these with the size as displayed.
_ORIENTED = frozenset({"TIFF", "HEIF"})
_FOREIGN_ERRORS = (
    *(ArithmeticError, AttributeError, EOFError, LookupError, MemoryError, OSError, RuntimeError),
    *(SyntaxError, TypeError, ValueError, Image.DecompressionBombError, struct.error, zlib.error),
)
"""Errors of Pillow's decoders for corrupt files."""


def is_image(path: PurePath) -> bool:
    """Return whether the name is that of an image."""
    return path.suffix.lower() in SUFFIXES


def find(folder: Path, file_name: str) -> Path:
    """Return the path of an image of a data set below *folder*.

    Raises `InvalidRequest`, which names *file_name*, if it is missing or outside of the folder.
    """
    path = folder / check_name(file_name)
    try:
        found = path.is_file()
    except OSError:
        # No file has a name as long.
        found = False
    if not found:
        raise InvalidRequest(file_name, f"the image is missing in {folder}")
    return path


def size(path: Path) -> Size:
    """Return the size of an image as displayed; reads the header only.

    Raises `InvalidRequest` for a file that is missing, or not an image.
    """
    with _opened(path) as image:
        width, height = image.size
        if image.format not in _ORIENTED:
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            width, height = (height, width) if orientation in _SWAPPED_SIDES else (width, height)
        return Size(height, width)


def thumbnail(path: Path, side: int) -> tuple[UInt8Array, Size]:
    """Return an image as displayed, uint8 ``[h, w, 3]`` RGB, reduced to *side*, and its full size.

    Raises as `size` does.
    """
    full = size(path)
    with _opened(path) as image:
        # Decodes a JPEG at a fraction of its size.
        image.draft("RGB", (2 * side, 2 * side))
        shown = ImageOps.exif_transpose(image).convert("RGB")
        shown.thumbnail((side, side))
        return np.array(shown, dtype=np.uint8), full


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    register_heif()
    try:
        with warnings.catch_warnings():
            # About odd metadata, and large images, of which only the header is read here.
            warnings.simplefilter("ignore")
            with Image.open(path) as image:
                yield image
    except _FOREIGN_ERRORS as error:
        missing = isinstance(error, FileNotFoundError)
        text = "is missing" if missing else "is not an image that can be read"
        raise InvalidRequest(str(path), text) from error


@functools.cache
def register_heif() -> None:
    """Make Pillow read HEIC, if the package for it is installed."""
    with suppress(ImportError):
        import pillow_heif  # noqa: PLC0415 - optional

        pillow_heif.register_heif_opener()
