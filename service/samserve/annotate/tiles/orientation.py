"""The EXIF orientation of a file, of which only the header is read."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import BinaryIO

from PIL import ExifTags
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from samserve.images import exif

UPRIGHT = exif.UPRIGHT
# Not `Image.open`, which checks sizes: those of an image that is read in windows have no limit.
_FORMATS: dict[bytes, Callable[[BinaryIO], ImageFile]] = {
    b"\xff\xd8\xff": JpegImageFile,
    b"\x89PNG": PngImageFile,
    b"II*\0": TiffImageFile,
    b"MM\0*": TiffImageFile,
    b"RIFF": WebPImageFile,
}


def orientation(file: BinaryIO) -> int:
    """Return the orientation, 1 to 8; of a file without one, or with a corrupt one, 1."""
    start = file.read(4)
    file.seek(0)
    kind = next((each for prefix, each in _FORMATS.items() if start.startswith(prefix)), None)
    if kind is None:
        return UPRIGHT
    try:
        # Pillow warns of corrupt blocks.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _of(kind(file))
    except (SyntaxError, ValueError, OSError, LookupError, TypeError):
        return UPRIGHT


def _of(opened: ImageFile) -> int:
    if not isinstance(opened, TiffImageFile):
        return exif.orientation(opened.info.get("exif"))
    found = opened.tag_v2.get(ExifTags.Base.Orientation, UPRIGHT)
    return found if found in range(1, 9) else UPRIGHT
