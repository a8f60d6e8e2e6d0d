"""Pillow's image of every kind of file is resized to the same bytes as an array of its pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve import images
from samserve.core import geometry
from samserve.engines.fake import MODEL
from samserve.models import families
from samserve.types import EncodedImage, RawImage, RawLayout, Size

from tests.core import photos
from tests.images.files import LIMITS, encoded

PHOTO = photos.named("chelsea")[:120, :91].copy()
GREY = PHOTO[..., 0].copy()
ALPHA = np.tile(np.linspace(0, 255, 91).astype(np.uint8), (120, 1))
DEEP = (GREY.astype(np.uint16) << 8) + ALPHA


def photo(mode: str = "RGB") -> Image.Image:
    return Image.fromarray(PHOTO).convert(mode)


def translucent(mode: str) -> Image.Image:
    image = photo(mode)
    image.putalpha(Image.fromarray(ALPHA))
    return image


def rotated(value: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[0x0112] = value
    return {"exif": exif}


FILES = {
    "jpeg": encoded(photo(), "JPEG"),
    "progressive": encoded(photo(), "JPEG", progressive=True),
    "grey jpeg": encoded(photo("L"), "JPEG"),
    "cmyk jpeg": encoded(photo("CMYK"), "JPEG"),
    **{f"orientation {n}": encoded(photo(), "JPEG", **rotated(n)) for n in range(2, 9)},
    "png": encoded(photo()),
    "rotated png": encoded(photo(), **rotated(6)),
    "grey png": encoded(photo("L")),
    "one bit png": encoded(photo("1")),
    "palette": encoded(photo("P")),
    "palette with transparency": encoded(photo("P"), transparency=3),
    "alpha": encoded(translucent("RGB")),
    "grey with alpha": encoded(translucent("L")),
    "16 bits": encoded(DEEP),
    "webp": encoded(photo(), "WEBP"),
    "webp with alpha": encoded(translucent("RGB"), "WEBP"),
}
PIXELS = {RawLayout.RGB: PHOTO, RawLayout.BGR: PHOTO[..., ::-1], RawLayout.GRAY: GREY}
SOURCES: dict[str, EncodedImage | RawImage] = {
    **{name: EncodedImage(file) for name, file in FILES.items()},
    **{
        layout.name: RawImage(pixels.tobytes(), Size(120, 91), layout)
        for layout, pixels in PIXELS.items()
    },
}


@pytest.mark.parametrize("target", [Size(256, 194), Size(64, 64), Size(120, 91)], ids=str)
@pytest.mark.parametrize("source", SOURCES)
def test_image_and_array_are_resized_to_the_same_bytes(source: str, target: Size) -> None:
    image = images.read(SOURCES[source], LIMITS)
    pixels = np.array(images.decode(SOURCES[source], LIMITS))

    direct = geometry.resize_image(image, target)

    assert np.array_equal(direct, geometry.resize_image(pixels, target))
    assert geometry.size_of(image) == geometry.size_of(pixels)
    assert np.array_equal(images.to_array(image), pixels)


@pytest.mark.parametrize("name", sorted(families.FAMILIES))
def test_every_family_places_image_and_array_alike(name: str) -> None:
    image = images.read(SOURCES["orientation 6"], LIMITS)
    family = families.FAMILIES[name]
    transform = family.transform(geometry.size_of(image), MODEL)

    placed = family.place(image, transform)

    assert np.array_equal(placed, family.place(images.to_array(image), transform))
