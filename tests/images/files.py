"""Encoding and decoding of the image files in these tests."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from samserve import images
from samserve.types import EncodedImage, Orientation, Size, UInt8Array

LIMITS = images.ImageLimits(max_pixels=4_000_000, max_side=4000)


def encoded(image: Image.Image | np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    image.save(buffer, kind, **options)
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
    """Return a segment of a JPEG."""
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def blend_with_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Blend colours ``[h, w, 3]`` with white by alpha ``[h, w]``, both 0 to 255."""
    opacity = alpha[..., None] / 255
    return colours * opacity + 255 * (1 - opacity)
