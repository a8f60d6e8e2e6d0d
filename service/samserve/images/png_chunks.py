"""The chunks of a PNG file that its pixels depend on.

Pillow is given only the header, the palette and the pixel data, because from the whole file it

* stores text chunks beside decoding parameters, so that a comment named ``interlace`` changes the
  pixels;
* fails on corruption in a chunk that no pixel depends on, which viewers ignore;
* checks no checksum of the pixel data, and replaces the first header by a later one;
* has the transparent colour at the bit depth of the file, and the pixels at another.

Sources: PNG (Third Edition), sections 5 and 11; libpng for the classification of errors.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from samserve.errors import ImageUnreadable
from samserve.images.errors import unreadable
from samserve.types import Size

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
_DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGBA: (8, 16),
}
_SAMPLES_PER_COLOUR = {GREY: 1, RGB: 3}
# Encoders write 8 KiB or more into each chunk.  With much smaller ones, the limit still allows a
# file of tens of megabytes.
_MAX_CHUNKS = 1 << 16
_MAX_FRAMES = 1 << 31
_CHUNK_OVERHEAD = 12
"""Bytes of a chunk beside its content: length and name before it, checksum after it."""
_IEND = b"\0\0\0\0IEND\xaeB`\x82"

Chunks = dict[bytes, memoryview]


@dataclass(frozen=True, slots=True, eq=False)
class PngFile:
    """Format and pixel data of a PNG file.

    ``transparent`` has the samples of the transparent colour, at the bit depth of the file; None
    for a palette, which has its own transparency.  ``exif`` may come before or after the pixels.
    ``frames`` includes the default image of an animation.
    """

    size: Size
    depth: int
    colour: int
    transparent: tuple[int, ...] | None
    exif: bytes | None
    frames: int
    interlaced: bool
    _head: tuple[bytes, ...] = field(repr=False)
    _pixels: tuple[memoryview, ...] = field(repr=False)

    def for_decoder(self, *, header: bytes | None = None) -> bytes:
        """Return the file with only the chunks for its pixels; *header* replaces that of IHDR.

        Raises ``ImageUnreadable`` if a checksum of the pixel data is wrong.
        """
        *whole, last = self._pixels
        for chunk in whole:
            _checked_content(b"IDAT", chunk)
        # If the file ends within its pixel data, the decoder detects missing pixels.
        truncated = _is_truncated(last)
        if not truncated:
            _checked_content(b"IDAT", last)
        head = self._head if header is None else (_chunk(b"IHDR", header), *self._head[1:])
        return b"".join((SIGNATURE, *head, *self._pixels, b"" if truncated else _IEND))


def read(data: bytes) -> PngFile:
    """Read a file that begins with ``SIGNATURE``.

    Raises ``ImageUnreadable`` for a file whose pixels cannot be determined.  Corruption of the
    pixel data itself is detected by ``for_decoder`` and the decoder.
    """
    first, pixels = _sort_chunks(data)
    if not pixels:
        raise unreadable("is corrupt: a PNG without pixel data")
    size, depth, colour, interlaced = _header(_checked_content(b"IHDR", first[b"IHDR"]))
    head: list[bytes] = [bytes(first[b"IHDR"])]
    transparent = None
    if colour == PALETTE:
        head += _palette(first)
    elif colour in _SAMPLES_PER_COLOUR and b"tRNS" in first:
        transparent = _transparent_colour(
            _checked_content(b"tRNS", first[b"tRNS"]), depth, _SAMPLES_PER_COLOUR[colour]
        )
    return PngFile(
        size=size,
        depth=depth,
        colour=colour,
        transparent=transparent,
        exif=_optional_content(first, b"eXIf"),
        frames=_frames(first),
        interlaced=interlaced,
        _head=tuple(head),
        _pixels=tuple(pixels),
    )


def _sort_chunks(data: bytes) -> tuple[Chunks, list[memoryview]]:
    """Return the first chunk of each relevant kind, and the chunks of pixel data."""
    first: Chunks = {}
    pixels: list[memoryview] = []
    previous = b""
    for kind, chunk in _chunks(data):
        if kind == b"IHDR" and first:
            raise unreadable("is corrupt: a PNG with two headers")
        if kind == b"IDAT":
            if pixels and previous != b"IDAT":
                raise unreadable("is corrupt: a PNG with other chunks between its pixel data")
            pixels.append(chunk)
        elif kind in (b"IHDR", b"eXIf") or (
            kind in (b"PLTE", b"tRNS", b"acTL", b"fcTL") and not pixels
        ):
            first.setdefault(kind, chunk)
        elif kind[:1].isupper() and kind != b"PLTE":
            raise unreadable(
                f"is a PNG that requires the chunk {kind.decode('ascii')}, which PNG does not "
                "define; save it as a plain PNG"
            )
        if b"IHDR" not in first:
            raise unreadable("is corrupt: a PNG that does not begin with its header")
        previous = kind
    return first, pixels


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and bytes, including length and checksum, of each chunk before IEND."""
    view, offset = memoryview(data), len(SIGNATURE)
    for _ in range(_MAX_CHUNKS):
        kind = data[offset + 4 : offset + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        if not kind.isalpha():
            raise unreadable("is corrupt: a PNG with a chunk without a valid name")
        end = offset + _CHUNK_OVERHEAD + int.from_bytes(data[offset : offset + 4], "big")
        yield kind, view[offset:end]
        offset = end
    raise unreadable("has too many chunks; save it again")


def _is_truncated(chunk: memoryview) -> bool:
    return len(chunk) < _CHUNK_OVERHEAD + int.from_bytes(chunk[:4], "big")


def _checked_content(kind: bytes, chunk: memoryview) -> memoryview:
    """Return the content of a chunk that pixels depend on, after checking it."""
    if _is_truncated(chunk):
        raise unreadable(f"is truncated in its chunk {kind.decode('ascii')}")
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise unreadable(f"is corrupt: the checksum of its chunk {kind.decode('ascii')} is wrong")
    return chunk[8:-4]


def _optional_content(first: Chunks, kind: bytes) -> bytes | None:
    """Return the content of a chunk that no pixel depends on; None if corrupt or missing."""
    if kind not in first:
        return None
    try:
        return bytes(_checked_content(kind, first[kind]))
    except ImageUnreadable:
        return None


def _header(content: memoryview) -> tuple[Size, int, int, bool]:
    if len(content) != 13:
        raise unreadable("is corrupt: a PNG with a header of the wrong length")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", content
    )
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise unreadable("is corrupt: a PNG without a valid size")
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise unreadable("is corrupt: a PNG of an unknown format")
    return Size(height, width), depth, colour, bool(interlace)


def _palette(first: Chunks) -> list[bytes]:
    """Return the chunks of the palette and its transparency for the decoder."""
    if b"PLTE" not in first:
        raise unreadable("is corrupt: a PNG without its palette")
    entries = len(_checked_content(b"PLTE", first[b"PLTE"]))
    if not 0 < entries <= 768 or entries % 3:
        raise unreadable(f"is corrupt: a PNG with a palette of {entries} bytes")
    if b"tRNS" not in first:
        return [bytes(first[b"PLTE"])]
    _checked_content(b"tRNS", first[b"tRNS"])
    return [bytes(first[b"PLTE"]), bytes(first[b"tRNS"])]


def _transparent_colour(content: memoryview, depth: int, samples: int) -> tuple[int, ...]:
    """Parse the transparent colour; bits above the depth are ignored (section 11.3.1.1)."""
    if len(content) != 2 * samples:
        raise unreadable(f"is corrupt: a PNG with a transparent colour of {len(content)} bytes")
    mask = (1 << depth) - 1
    return tuple(value & mask for value in struct.unpack(f">{samples}H", content))


def _frames(first: Chunks) -> int:
    """Count frames; an animation that does not begin with the default image has one more."""
    control = _optional_content(first, b"acTL")
    count = int.from_bytes(control[:4], "big") if control and len(control) == 8 else 0
    if not 0 < count < _MAX_FRAMES:
        return 1
    return count if b"fcTL" in first else count + 1


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
