"""`samserve.images`: files and raw pixels.

An input is one byte of flags and, for raw pixels, height and width, four bytes each; then the
file or the pixels.  With a flag, the checksums of a PNG file are corrected; with another, a PNG
file is built of a header and rows.
"""

from __future__ import annotations

import struct

import numpy as np
from samserve import images
from samserve.errors import SamserveError
from samserve.types import EncodedImage, Orientation, RawImage, RawLayout, Size, UInt8Array

from fuzz import files

LIMITS = images.ImageLimits(max_pixels=5000, max_side=100)
_LAYOUTS = (None, RawLayout.RGB, RawLayout.BGR, RawLayout.GRAY)
_IGNORE, _VALID_CHECKSUMS, _PNG_ROWS = 4, 8, 16
WORDS = (
    *(b"IHDR", b"PLTE", b"tRNS", b"iCCP", b"zTXt", b"eXIf", b"acTL", b"fcTL", b"IDAT", b"IEND"),
    *(b"\xff\xc0", b"\xff\xda", b"\xff\xdb", b"\xff\xc4", b"\xff\xe1", b"\xff\xd9"),
    *(b"VP8X", b"VP8L", b"VP8 ", b"ANIM", b"ANMF", b"ALPH", b"EXIF", b"II*\0", b"MM\0*"),
)


def run(data: bytes) -> None:
    """Probe and decode; the results must agree."""
    check(_image(data))


def check(image: EncodedImage | RawImage) -> None:
    """Probe and decode one image, also as a mask; raise the errors of `decode`."""
    size, probe_error = _probe(image)
    pixels, decode_error = _decode(image)
    # Only `decode` detects corruption after the header.
    assert probe_error is None or type(probe_error) is type(decode_error)
    if decode_error is not None:
        raise decode_error
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


def _probe(image: EncodedImage | RawImage) -> tuple[Size | None, SamserveError | None]:
    try:
        return images.probe(image, LIMITS), None
    except SamserveError as error:
        return None, error


def _decode(image: EncodedImage | RawImage) -> tuple[UInt8Array | None, SamserveError | None]:
    try:
        return images.decode(image, LIMITS), None
    except SamserveError as error:
        return None, error


def _image(data: bytes) -> EncodedImage | RawImage:
    flags = data[0] if data else 0
    layout = _LAYOUTS[flags & 3]
    if layout is None:
        file = files.png_of_rows(data[1:14], data[14:]) if flags & _PNG_ROWS else data[1:]
        file = files.with_valid_checksums(file) if flags & _VALID_CHECKSUMS else file
        return EncodedImage(file, Orientation.IGNORE if flags & _IGNORE else Orientation.EXIF)
    height, width = struct.unpack("<ii", data[1:9].ljust(8, b"\0"))
    return RawImage(data[9:], Size(height, width), layout)


def raw(layout: RawLayout, size: Size, pixels: bytes) -> bytes:
    """Return an input of raw pixels."""
    header = bytes([_LAYOUTS.index(layout)]) + struct.pack("<ii", size.height, size.width)
    return header + pixels


def seeds() -> list[bytes]:
    """Return files of every kind, and raw pixels."""
    layouts = (RawLayout.RGB, RawLayout.BGR, RawLayout.GRAY)
    raws = [raw(layout, Size(5, 7), bytes(35 * layout.channels)) for layout in layouts]
    encoded = [*files.jpegs(), *files.webps(), *files.others()]
    pngs = [bytes([flag]) + file for file in files.pngs() for flag in (0, _VALID_CHECKSUMS)]
    header = struct.pack(">IIBBBBB", 5, 7, 8, 2, 0, 0, 0)
    ignoring_orientation = bytes([_IGNORE]) + files.jpegs()[-4]
    rows = bytes([_PNG_ROWS]) + header + bytes(7 * 16)
    return [*(b"\0" + file for file in encoded), *pngs, *raws, ignoring_orientation, rows]
