"""Mutations of picture files by their parts, so that checksums and lengths still hold."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from fuzz import mutation, pictures

_JPEG_MARKERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xDB, 0xDD, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE)
_BOMB = bytes(3 << 20)


@dataclass(slots=True)
class Part:
    """A chunk of a PNG or WebP file, or a segment of a JPEG file."""

    kind: bytes
    body: bytes


def mutated(data: bytes, random: Random) -> bytes:
    """Change a file in one or two of its parts; what is no picture file, anywhere."""
    if data.startswith(pictures.PNG_SIGNATURE):
        return _rebuilt(data, random, _png_parts, _png_file, _png_part)
    if data.startswith(b"\xff\xd8"):
        return _rebuilt(data, random, _jpeg_parts, _jpeg_file, _jpeg_part)
    if data.startswith(b"RIFF"):
        return _rebuilt(data, random, _webp_parts, _webp_file, _webp_part)
    return mutation.mutated(data, random)


def _rebuilt(
    data: bytes,
    random: Random,
    split: Callable[[bytes], list[Part]],
    join: Callable[[list[Part]], bytes],
    invent: Callable[[Random], Part],
) -> bytes:
    parts = split(data)
    for _ in range(random.randrange(1, 3)):
        _change(parts, random, invent)
    return join(parts)


def _change(parts: list[Part], random: Random, invent: Callable[[Random], Part]) -> None:
    kind = random.randrange(8)
    if not parts or kind == 0:
        parts.insert(random.randrange(len(parts) + 1), invent(random))
        return
    at = random.randrange(len(parts))
    if kind == 1:
        del parts[at]
    elif kind == 2:
        parts.insert(random.randrange(len(parts) + 1), Part(parts[at].kind, parts[at].body))
    elif kind == 3:
        other = random.randrange(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif kind == 4 and parts[at].kind == b"IDAT":
        parts[at].body = _inflated_changed(parts[at].body, random)
    elif kind == 5:
        parts[at].kind = invent(random).kind
    else:
        parts[at].body = mutation.mutated(parts[at].body, random)


def _inflated_changed(body: bytes, random: Random) -> bytes:
    try:
        pixels = zlib.decompressobj().decompress(body, 1 << 16)
    except zlib.error:
        return body
    return zlib.compress(mutation.mutated(pixels, random))


def _exif(random: Random) -> bytes:
    block = pictures.tiff(
        random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 65535)),
        order=random.choice("<>"),
        entries=random.choice((0, 1, 2, 65535)),
        at=random.choice((8, 8, 8, 0, 2**31, 2**32 - 1)),
    )
    return block if random.random() < 0.7 else mutation.mutated(block, random)


def _png_parts(data: bytes) -> list[Part]:
    parts, at = [], len(pictures.PNG_SIGNATURE)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        parts.append(Part(kind, data[at + 8 : at + 8 + length]))
        at += 12 + length
    return parts


def _png_file(parts: list[Part]) -> bytes:
    chunks = b"".join(pictures.chunk(part.kind, part.body) for part in parts)
    return pictures.PNG_SIGNATURE + chunks


def _png_part(random: Random) -> Part:
    """Invent a chunk of any kind that Pillow looks into."""
    size = [random.choice((0, 1, 5, 7, 99, 101, 2**31 - 1, 2**32 - 1)) for _ in range(2)]
    formats = [random.choice((0, 1, 2, 3, 4, 6, 8, 16, 32)) for _ in range(2)]
    header = struct.pack(">IIBBBBB", *size, *formats, 0, 0, random.randrange(2))
    bomb = zlib.compress(_BOMB[: random.choice((10, 1 << 16, 1 << 20, 3 << 20))])
    bodies = {
        b"IHDR": header,
        b"PLTE": random.randbytes(random.choice((0, 1, 3, 48, 768, 771))),
        b"tRNS": random.randbytes(random.choice((0, 1, 2, 5, 6, 255, 256, 257))),
        b"iCCP": b"name\0\0" + bomb,
        b"zTXt": b"key\0\0" + bomb,
        b"iTXt": b"key\0\1\0en\0key\0" + bomb,
        b"tEXt": b"key\0" + random.randbytes(9),
        b"eXIf": _exif(random),
        b"acTL": struct.pack(">II", random.choice((0, 1, 2, 2**31, 2**32 - 1)), 0),
        b"fcTL": random.randbytes(26),
        b"fdAT": random.randbytes(9),
        b"pHYs": random.randbytes(random.randrange(10)),
        b"gAMA": random.randbytes(random.randrange(5)),
        b"cHRM": random.randbytes(random.choice((0, 31, 32))),
        b"sRGB": random.randbytes(random.randrange(2)),
        b"IDAT": zlib.compress(random.randbytes(random.randrange(99))),
        b"IEND": b"",
        b"xxXx": b"",
    }
    kind = random.choice(list(bodies))
    return Part(kind, bodies[kind])


def _jpeg_parts(data: bytes) -> list[Part]:
    """Split up to each scan, which takes the rest up to the next marker into its body."""
    parts, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + length
        if data[at + 1] == 0xDA:
            end = _end_of_scan(data, end)
        parts.append(Part(data[at + 1 : at + 2], data[at + 4 : end]))
        at = end
    return parts


def _end_of_scan(data: bytes, at: int) -> int:
    while 0 <= (at := data.find(b"\xff", at)) < len(data) - 1:
        if data[at + 1] and not 0xD0 <= data[at + 1] <= 0xD7:
            return at
        at += 2
    return len(data)


def _jpeg_file(parts: list[Part]) -> bytes:
    return b"\xff\xd8" + b"".join(_segment(part) for part in parts) + b"\xff\xd9"


def _segment(part: Part) -> bytes:
    # A scan's length counts its header only: components and what follows.
    header = part.body[:1] and 1 + 2 * part.body[0] + 3 if part.kind == b"\xda" else None
    length = 2 + (len(part.body) if header is None else int(header or 0))
    return b"\xff" + part.kind + struct.pack(">H", length & 0xFFFF) + part.body


def _jpeg_part(random: Random) -> Part:
    """Invent a segment of any kind that Pillow looks into."""
    size = [random.choice((0, 1, 5, 7, 99, 101, 65535)) for _ in range(2)]
    components = random.choice((0, 1, 2, 3, 4, 255))
    frame = struct.pack(">BHHB", random.choice((8, 8, 12)), *size, components)
    bodies = {
        0xE0: b"JFIF\0" + random.randbytes(9),
        0xE1: random.choice((b"Exif\0\0", b"Exif\0", b"http://ns.adobe.com/xap/1.0/\0"))
        + _exif(random),
        0xE2: random.choice((b"ICC_PROFILE\0\1\1", b"MPF\0")) + _exif(random),
        0xED: b"Photoshop 3.0\08BIM\x03\xed" + random.randbytes(22),
        0xEE: b"Adobe\0\x64\0\0\0\0" + bytes([random.randrange(4)]),
        0xDD: random.randbytes(2),
        0xDB: bytes([random.randrange(4)]) + random.randbytes(64),
        0xC4: random.randbytes(30),
        0xC0: frame + random.randbytes(9),
        0xFE: random.randbytes(9),
    }
    kind = random.choice(list(bodies))
    marker = kind if random.random() < 0.8 else random.choice(_JPEG_MARKERS)
    return Part(bytes([marker]), bodies[kind])


def _webp_parts(data: bytes) -> list[Part]:
    parts, at = [], 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        parts.append(Part(kind, data[at + 8 : at + 8 + length]))
        at += 8 + length + length % 2
    return parts


def _webp_file(parts: list[Part]) -> bytes:
    chunks = b"".join(
        struct.pack("<4sI", part.kind, len(part.body)) + part.body + b"\0" * (len(part.body) % 2)
        for part in parts
    )
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WEBP" + chunks


def _webp_part(random: Random) -> Part:
    """Invent a chunk of the extended format."""
    side = random.choice((0, 4, 8, 99, 2**24 - 1)).to_bytes(3, "little")
    bodies = {
        b"VP8X": bytes([random.getrandbits(8), 0, 0, 0]) + side + side,
        b"ANIM": random.randbytes(6),
        b"ANMF": random.randbytes(24),
        b"ALPH": random.randbytes(9),
        b"EXIF": _exif(random),
        b"ICCP": random.randbytes(9),
        b"XMP ": b"<x/>",
        b"VP8L": b"\x2f" + random.randbytes(12),
        b"VP8 ": random.randbytes(3) + b"\x9d\x01\x2a" + random.randbytes(12),
    }
    kind = random.choice(list(bodies))
    return Part(kind, bodies[kind])
