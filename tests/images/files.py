"""Files of the tests here, and how they are read."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from samserve import images
from samserve.types import EncodedImage, Orientation, Size, UInt8Array

LIMITS = images.ImageLimits(max_pixels=4_000_000, max_side=4000)


def encoded(picture: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(file: bytes, orientation: Orientation = Orientation.EXIF) -> UInt8Array:
    image = EncodedImage(file, orientation)
    rgb = images.decode(image, LIMITS)
    assert images.probe(image, LIMITS) == Size(*rgb.shape[:2])
    assert rgb.dtype == np.uint8
    assert rgb.shape[2] == 3
    assert rgb.flags.c_contiguous
    return rgb


def segment(kind: int, content: bytes = b"") -> bytes:
    """Write a segment of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Lay colours ``[h, w, 3]`` over white by alpha ``[h, w]``, both 0 to 255."""
    part = alpha[..., None] / 255
    return colours * part + 255 * (1 - part)
