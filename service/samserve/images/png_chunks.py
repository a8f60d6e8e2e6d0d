"""A PNG file by its chunks: what its pixels are made of, and nothing else.

Pillow is given only the header, the palette and the pixel data, because from the whole file it

* keeps text beside the facts that it decodes by, so that a comment of the name ``interlace``
  changes the pixels;
* stops at damage in a chunk that no pixel depends on, which viewers do not even notice;
* checks no checksum of the pixel data, and takes a later header for the first;
* has the transparent colour in the depth of the file, and the pixels in another.

Sources: PNG (Third Edition), sections 5 and 11; libpng for what is an error.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from samserve.errors import ImageUnreadable
from samserve.images.refusal import unreadable
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
_KEY_SAMPLES = {GREY: 1, RGB: 3}
# Encoders write 8 KiB or more into each; smaller ones take a file of tens of megabytes so far.
_MOST_CHUNKS = 1 << 16
_MOST_FRAMES = 1 << 31
_AROUND = 12
"""Bytes of a chunk beside its content: length and name before, checksum behind."""
_IEND = b"\0\0\0\0IEND\xaeB`\x82"

Chunks = dict[bytes, memoryview]


@dataclass(frozen=True, slots=True, eq=False)
class PngFile:
    """What a PNG file says of its pixels.

    ``transparent`` are the samples of the one colour that is not shown, in the file's own depth;
    a palette has its transparency in itself.  ``exif`` may stand before or behind the pixels.
    ``frames`` counts the default image of an animation.
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
        """Return the file without what no pixel depends on; *header* replaces the content of IHDR.

        Raises ``ImageUnreadable`` if a checksum of the pixel data is wrong.
        """
        *whole, last = self._pixels
        for chunk in whole:
            _content(b"IDAT", chunk)
        # Whether a file that ends in its pixel data has all of it, the decoder finds out.
        cut = _is_cut(last)
        if not cut:
            _content(b"IDAT", last)
        head = self._head if header is None else (_chunk(b"IHDR", header), *self._head[1:])
        return b"".join((SIGNATURE, *head, *self._pixels, b"" if cut else _IEND))


def read(data: bytes) -> PngFile:
    """Read a file that begins with ``SIGNATURE``.

    Raises ``ImageUnreadable`` for a file whose pixels cannot be known; damage of the pixel data
    itself is found by ``for_decoder`` and the decoder.
    """
    first, pixels = _sorted(data)
    if not pixels:
        raise unreadable("is damaged: a PNG without pixel data")
    size, depth, colour, interlaced = _header(_content(b"IHDR", first[b"IHDR"]))
    head: list[bytes] = [bytes(first[b"IHDR"])]
    transparent = None
    if colour == PALETTE:
        head += _palette(first)
    elif colour in _KEY_SAMPLES and b"tRNS" in first:
        transparent = _key(_content(b"tRNS", first[b"tRNS"]), depth, _KEY_SAMPLES[colour])
    return PngFile(
        size=size,
        depth=depth,
        colour=colour,
        transparent=transparent,
        exif=_intact(first, b"eXIf"),
        frames=_frames(first),
        interlaced=interlaced,
        _head=tuple(head),
        _pixels=tuple(pixels),
    )


def _sorted(data: bytes) -> tuple[Chunks, list[memoryview]]:
    """Return the first chunk of each kind that counts, and the chunks of pixel data."""
    first: Chunks = {}
    pixels: list[memoryview] = []
    before = b""
    for kind, chunk in _chunks(data):
        if kind == b"IHDR" and first:
            raise unreadable("is damaged: a PNG with two headers")
        if kind == b"IDAT":
            if pixels and before != b"IDAT":
                raise unreadable("is damaged: a PNG with other chunks between its pixel data")
            pixels.append(chunk)
        elif kind in (b"IHDR", b"eXIf") or (
            kind in (b"PLTE", b"tRNS", b"acTL", b"fcTL") and not pixels
        ):
            first.setdefault(kind, chunk)
        elif kind[:1].isupper() and kind != b"PLTE":
            raise unreadable(
                f"is a PNG that needs the chunk {kind.decode('ascii')}, which PNG does not define; "
                "save it as a plain PNG"
            )
        if b"IHDR" not in first:
            raise unreadable("is damaged: a PNG that does not begin with its header")
        before = kind
    return first, pixels


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """Yield name and bytes, length and checksum among them, of each chunk before IEND."""
    view, at = memoryview(data), len(SIGNATURE)
    for _ in range(_MOST_CHUNKS):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4 or kind == b"IEND":
            return
        if not kind.isalpha():
            raise unreadable("is damaged: a PNG with a chunk of no valid name")
        end = at + _AROUND + int.from_bytes(data[at : at + 4], "big")
        yield kind, view[at:end]
        at = end
    raise unreadable("has too many chunks; save it again")


def _is_cut(chunk: memoryview) -> bool:
    return len(chunk) < _AROUND + int.from_bytes(chunk[:4], "big")


def _content(kind: bytes, chunk: memoryview) -> memoryview:
    """Check a chunk that pixels depend on, and return its content."""
    if _is_cut(chunk):
        raise unreadable(f"is cut off in its chunk {kind.decode('ascii')}")
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:], "big"):
        raise unreadable(f"is damaged: the checksum of its chunk {kind.decode('ascii')} is wrong")
    return chunk[8:-4]


def _intact(first: Chunks, kind: bytes) -> bytes | None:
    """Return the content of a chunk that pixels do not depend on; None if damaged or not there."""
    if kind not in first:
        return None
    try:
        return bytes(_content(kind, first[kind]))
    except ImageUnreadable:
        return None


def _header(content: memoryview) -> tuple[Size, int, int, bool]:
    if len(content) != 13:
        raise unreadable("is damaged: a PNG with a header of the wrong length")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(
        ">IIBBBBB", content
    )
    if not (0 < width < 1 << 31 and 0 < height < 1 << 31):
        raise unreadable("is damaged: a PNG without a valid size")
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise unreadable("is damaged: a PNG of an unknown format")
    return Size(height, width), depth, colour, bool(interlace)


def _palette(first: Chunks) -> list[bytes]:
    """Return the chunks of the palette and its transparency as they are to be decoded."""
    if b"PLTE" not in first:
        raise unreadable("is damaged: a PNG without its palette")
    entries = len(_content(b"PLTE", first[b"PLTE"]))
    if not 0 < entries <= 768 or entries % 3:
        raise unreadable(f"is damaged: a PNG with a palette of {entries} bytes")
    if b"tRNS" not in first:
        return [bytes(first[b"PLTE"])]
    _content(b"tRNS", first[b"tRNS"])
    return [bytes(first[b"PLTE"]), bytes(first[b"tRNS"])]


def _key(content: memoryview, depth: int, samples: int) -> tuple[int, ...]:
    """Read the transparent colour; bits above the depth do not count (section 11.3.1.1)."""
    if len(content) != 2 * samples:
        raise unreadable(f"is damaged: a PNG with a transparent colour of {len(content)} bytes")
    mask = (1 << depth) - 1
    return tuple(value & mask for value in struct.unpack(f">{samples}H", content))


def _frames(first: Chunks) -> int:
    """Count frames; an animation that does not begin with the default image has one more."""
    control = _intact(first, b"acTL")
    count = int.from_bytes(control[:4], "big") if control and len(control) == 8 else 0
    if not 0 < count < _MOST_FRAMES:
        return 1
    return count if b"fcTL" in first else count + 1


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
