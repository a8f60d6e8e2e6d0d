"""`imaging`: files and raw pixels.

An input is one byte of flags and, for raw pixels, height and width, four bytes each; then the
file or the pixels.
"""

from __future__ import annotations

import struct
from random import Random

import numpy as np
from samserve import images
from samserve.errors import SamserveError
from samserve.types import EncodedImage, Orientation, RawImage, RawLayout, Size, UInt8Array

from fuzz import containers, mutation, pictures

LIMITS = images.ImageLimits(max_pixels=5000, max_side=100)
_LAYOUTS = (None, RawLayout.RGB, RawLayout.BGR, RawLayout.GRAY)
_IGNORE = 4


def run(data: bytes) -> None:
    """Probe and decode; they must agree."""
    check(_image(data))


def check(image: EncodedImage | RawImage) -> None:
    """Probe and decode one image, as a mask too; what `decode` raises passes."""
    size, probe_refusal = _probed(image)
    pixels, refusal = _decoded(image)
    # Damage behind the header is seen by `decode` alone.
    assert probe_refusal is None or type(probe_refusal) is type(refusal)
    if refusal is not None:
        raise refusal
    assert size is not None
    assert pixels is not None
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.shape == (size.height, size.width, 3)
    assert 0 < size.pixels <= LIMITS.max_pixels
    assert max(size.height, size.width) <= LIMITS.max_side
    if isinstance(image, EncodedImage):
        mask = images.decode_mask(image, LIMITS)
        assert mask.dtype == np.bool_
        assert mask.shape == pixels.shape[:2]


def _probed(image: EncodedImage | RawImage) -> tuple[Size | None, SamserveError | None]:
    try:
        return images.probe(image, LIMITS), None
    except SamserveError as error:
        return None, error


def _decoded(image: EncodedImage | RawImage) -> tuple[UInt8Array | None, SamserveError | None]:
    try:
        return images.decode(image, LIMITS), None
    except SamserveError as error:
        return None, error


def _image(data: bytes) -> EncodedImage | RawImage:
    flags = data[0] if data else 0
    layout = _LAYOUTS[flags & 3]
    if layout is None:
        return EncodedImage(data[1:], Orientation.IGNORE if flags & _IGNORE else Orientation.EXIF)
    height, width = struct.unpack("<ii", data[1:9].ljust(8, b"\0"))
    return RawImage(data[9:], Size(height, width), layout)


def raw(layout: RawLayout, size: Size, pixels: bytes) -> bytes:
    """Write an input of raw pixels."""
    header = bytes([_LAYOUTS.index(layout)]) + struct.pack("<ii", size.height, size.width)
    return header + pixels


def seeds() -> list[bytes]:
    """Give files of every kind, and raw pixels."""
    files = [*pictures.jpegs(), *pictures.pngs(), *pictures.webps(), *pictures.others()]
    layouts = (RawLayout.RGB, RawLayout.BGR, RawLayout.GRAY)
    raws = [raw(layout, Size(5, 7), bytes(35 * layout.channels)) for layout in layouts]
    turned = bytes([_IGNORE]) + pictures.jpegs()[-4]
    return [b"\0" + file for file in files] + raws + [turned]


def mutate(data: bytes, random: Random) -> bytes:
    """Change parts of a file, or the size that is claimed."""
    if not data or data[0] & 3 == 0:
        return data[:1] + containers.mutated(data[1:], random)
    if random.random() < 0.5:
        size = Size(random.randrange(1, 12), random.randrange(1, 12))
        layout = random.choice((RawLayout.RGB, RawLayout.BGR, RawLayout.GRAY))
        return raw(layout, size, random.randbytes(size.pixels * layout.channels))
    sides = struct.pack("<ii", mutation.integer(random), mutation.integer(random))
    return data[:1] + sides + data[9:]
