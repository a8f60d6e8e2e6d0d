"""Raw pixels of a request: checks and conversion to RGB."""

from __future__ import annotations

from PIL import Image

from samserve.errors import InvalidRequest
from samserve.types import RawImage, RawLayout

SIZE = "image.raw.size"
_DATA = "image.raw.data"
_ORDERS = {RawLayout.RGB: "RGB", RawLayout.BGR: "BGR"}


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


def to_rgb(image: RawImage) -> Image.Image:
    """Return a copy of raw pixels as an RGB image."""
    size = (image.size.width, image.size.height)
    if image.layout is RawLayout.GRAY:
        return Image.frombytes("L", size, image.data).convert("RGB")
    return Image.frombytes("RGB", size, image.data, "raw", _ORDERS[image.layout])
