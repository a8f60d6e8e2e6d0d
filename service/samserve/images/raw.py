"""Raw pixels of a request: checks and conversion to RGB."""

from __future__ import annotations

import numpy as np

from samserve.errors import InvalidRequest
from samserve.types import RawImage, RawLayout, UInt8Array

SIZE = "image.raw.size"
_DATA = "image.raw.data"


def check_size(image: RawImage) -> None:
    """Raise ``InvalidRequest`` unless height and width are positive."""
    size = image.size
    if size.height < 1 or size.width < 1:
        text = f"must be positive, not {size.height} x {size.width}"
        metadata = {"height": str(size.height), "width": str(size.width)}
        raise InvalidRequest(SIZE, text, metadata=metadata)


def check_data(image: RawImage) -> None:
    """Raise ``InvalidRequest`` unless the number of bytes matches the size."""
    expected = image.size.pixels * image.layout.channels
    if len(image.data) != expected:
        text = f"must have {expected} bytes (height * width * channels), not {len(image.data)}"
        metadata = {"expected": str(expected), "actual": str(len(image.data))}
        raise InvalidRequest(_DATA, text, metadata=metadata)


def to_rgb(image: RawImage) -> UInt8Array:
    """Return a copy of raw pixels in RGB order: uint8 ``[h, w, 3]``."""
    shape = (image.size.height, image.size.width, image.layout.channels)
    pixels = np.frombuffer(image.data, dtype=np.uint8).reshape(shape)
    if image.layout is RawLayout.GRAY:
        return np.repeat(pixels, 3, axis=2)
    if image.layout is RawLayout.BGR:
        pixels = pixels[:, :, ::-1]
    return np.array(pixels, dtype=np.uint8, order="C")
