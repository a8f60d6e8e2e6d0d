"""PNG files of every format, encoded from their samples.

An encoder of our own: Pillow writes few of the formats, and the expected pixels are those that were
encoded, not those of another decoder.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
FORMATS = [
    *((depth, GREY) for depth in (1, 2, 4, 8, 16)),
    *((depth, PALETTE) for depth in (1, 2, 4, 8)),
    *((depth, colour) for colour in (RGB, GREY_ALPHA, RGBA) for depth in (8, 16)),
]
"""Every depth that each colour type may have."""

END = b"\0\0\0\0IEND\xaeB`\x82"
_ADAM7 = [
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
]

Samples = npt.NDArray[np.integer]


def chunk(kind: bytes, content: bytes, *, checksum: int | None = None) -> bytes:
    """Encode a chunk, with *checksum* instead of the correct one if it is given."""
    correct = zlib.crc32(kind + content)
    tail = struct.pack(">I", correct if checksum is None else checksum)
    return struct.pack(">I", len(content)) + kind + content + tail


@dataclass(frozen=True, slots=True)
class Png:
    """A PNG: samples ``[h, w, c]`` in 0..2**depth-1, and chunks around the pixel data."""

    samples: Samples
    depth: int
    colour: int
    interlaced: bool = False
    before: tuple[bytes, ...] = ()
    after: tuple[bytes, ...] = ()

    def header(self) -> bytes:
        """Encode the signature and the header."""
        height, width, _ = self.samples.shape
        fields = (width, height, self.depth, self.colour, 0, 0, int(self.interlaced))
        return SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", *fields))

    def pixels(self) -> bytes:
        """Encode the pixel data."""
        passes = _ADAM7 if self.interlaced else [(0, 0, 1, 1)]
        rows = b"".join(
            row
            for x, y, across, down in passes
            for row in _filtered(self.samples[y::down, x::across], self.depth)
        )
        return chunk(b"IDAT", zlib.compress(rows))

    def file(self) -> bytes:
        """Encode the whole file."""
        return b"".join((self.header(), *self.before, self.pixels(), *self.after, END))


def _filtered(samples: Samples, depth: int) -> Iterator[bytes]:
    """Yield packed rows with the filters none, left neighbour and row above alternately."""
    height, width, channels = samples.shape
    if not width:
        return
    pixel_bytes = max(1, channels * depth // 8)
    above = np.zeros(0, np.uint8)
    for number in range(height):
        row = _packed(samples[number].reshape(-1), depth)
        above = above if len(above) else np.zeros_like(row)
        left = np.concatenate([np.zeros(pixel_bytes, np.uint8), row])[: len(row)]
        kind = number % 3
        yield bytes([kind]) + (row - (0, left, above)[kind]).astype(np.uint8).tobytes()
        above = row


def _packed(values: Samples, depth: int) -> npt.NDArray[np.uint8]:
    if depth == 16:
        return np.frombuffer(values.astype(">u2").tobytes(), np.uint8)
    bits = np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :]
    return np.packbits(bits.reshape(-1))
