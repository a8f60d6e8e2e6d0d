"""The images for the parity check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from samserve.errors import SamserveError
from samserve.export.errors import ExportError
from samserve.images import ImageLimits, decode
from samserve.types import EncodedImage, UInt8Array

SAMPLES = Path(__file__).with_name("samples")
"""Folder of three photographs, free of copyright restrictions; see its README."""

LIMITS = ImageLimits(max_pixels=100_000_000, max_side=32_768)


def read_images(paths: Sequence[Path]) -> list[UInt8Array]:
    """Read the given JPEG, PNG or WebP files, or the samples if none is given.

    Each is uint8 RGB ``[h, w, 3]``, upright.  Raises `ExportError`.
    """
    return [_read(path) for path in paths or sorted(SAMPLES.glob("*.jpg"))]


def _read(path: Path) -> UInt8Array:
    try:
        return decode(EncodedImage(path.read_bytes()), LIMITS)
    except (OSError, SamserveError) as error:
        raise ExportError(f"{path.name} cannot be read as an image: {error}") from error
