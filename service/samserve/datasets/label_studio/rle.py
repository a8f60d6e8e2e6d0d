"""Label Studio's run lengths: a stream of bits over the RGBA bytes of a mask, row by row.

Format: npm package @thi.ng/rle-pack, ``decode``; label_studio_sdk/converter/brush.py decode_rle.
After the number of values (32 bits), the bits of a value minus 1 (5) and four bit widths minus 1 (4
each) follow runs: a bit that is 1 for a repeated value, the index of the width (2), the length
minus 1 in that width, and the value; or with a bit that is 0, as many values.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from samserve.core import run_lengths
from samserve.types import CocoRle, Size

IntArray = npt.NDArray[np.int64]

MAX_PIXELS = (1 << 30) - 1
"""Pixels whose RGBA bytes a stream can count."""

_CHANNELS = 4
_VALUE_BITS = 8
_WIDTHS = np.array([4, 8, 12, 16])
_LONGEST = 1 << int(_WIDTHS[-1])
_HEADER = "{:032b}{:05b}" + "{:04b}" * len(_WIDTHS)
_PREFIX_BITS = 3
_CODE_BITS = _PREFIX_BITS + int(_WIDTHS[-1]) + _VALUE_BITS
_CHUNK_CODES = 1 << 16


def encode(mask: CocoRle) -> list[int]:
    """Encode a mask to bytes of Label Studio's format: its pixels are 255 in every channel.

    Takes time and memory for the runs and the outline, not for the pixels.  Raises ``ValueError``
    for a mask that is not valid, or of more than `MAX_PIXELS`.
    """
    if mask.size.pixels > MAX_PIXELS:
        raise ValueError(f"a mask of {mask.size.pixels} pixels is over {MAX_PIXELS}")
    columns = np.array(run_lengths.uncompressed(mask), dtype=np.int64)
    rows = row_runs(columns, mask.size)
    header = _HEADER.format(mask.size.pixels * _CHANNELS, _VALUE_BITS - 1, *(_WIDTHS - 1))
    bits = [np.frombuffer(header.encode("ascii"), dtype=np.uint8) - ord("0"), *_codes(rows)]
    packed: list[int] = np.packbits(np.concatenate(bits)).tolist()
    return packed


def decode(data: bytes, size: Size) -> CocoRle:
    """Decode a mask of *size*: a pixel is in it if its alpha is not 0, as on Label Studio's page.

    Streams of its page and of its SDK have values between, and widths of their own.  Takes time and
    memory for the stream, not for the pixels.  Raises ``ValueError`` for a stream that is not valid
    or not of *size*.
    """
    reader = _Reader(data)
    count = reader.read(32)
    if count != size.pixels * _CHANNELS:
        raise ValueError(
            f"has {count} values, not {_CHANNELS} for each of {size.width}x{size.height} pixels"
        )
    if reader.read(5) != _VALUE_BITS - 1:
        raise ValueError(f"has values that are not of {_VALUE_BITS} bits")
    widths = [reader.read(4) + 1 for _ in _WIDTHS]
    ends: list[IntArray] = [np.zeros(1, dtype=np.int64)]
    inside: list[npt.NDArray[np.bool_]] = []
    place = 0
    while place < count:
        repeated = reader.read(1)
        end = place + 1 + reader.read(widths[reader.read(2)])
        if end > count:
            raise ValueError(f"has more than {count} values")
        values = reader.bytes(1 if repeated else end - place)
        # A value is the alpha of a pixel in every fourth place, the last of its channels.
        first, last = place // _CHANNELS, end // _CHANNELS
        if repeated:
            ends.append(np.array([last]))
            inside.append(values > 0)
        else:
            ends.append(np.arange(first, last) + 1)
            inside.append(values[(_CHANNELS - 1 - place) % _CHANNELS :: _CHANNELS] > 0)
        place = end
    borders = np.concatenate(ends)
    rows = _merged(borders[1:] - borders[:-1], np.concatenate(inside))
    # What are rows here are columns of the image mirrored at its diagonal.
    columns = row_runs(rows, Size(size.width, size.height))
    return run_lengths.from_runs(size, columns)


def row_runs(runs: IntArray, size: Size) -> IntArray:
    """Return the run lengths of a mask row by row, from those column by column; background first.

    Both are int64 and sum to *size*.
    """
    pairs = _sides(_ends(runs, size.height), size.height).reshape(-1, 2)
    column, first = np.divmod(pairs[:, 0], size.height + 1)
    count = pairs[:, 1] - pairs[:, 0]
    start = np.repeat(first - np.cumsum(count) + count, count)
    row = start + np.arange(start.size)
    # Where one row ends at an object and the next begins with one, nothing changes.
    changes = _odd(row * size.width + np.repeat(column, count))
    return np.diff(changes[changes < size.pixels], prepend=0, append=size.pixels)


def _ends(runs: IntArray, height: int) -> IntArray:
    """Return where the runs of the object begin and end, ordered, none longer than a column.

    A position is ``column * (height + 1) + row``, with *height* as row for the end of a column.
    """
    changes = np.cumsum(runs)
    starts, ends = changes[:-1:2], changes[1::2]
    filled = starts < ends
    starts, ends = starts[filled], ends[filled]
    first, last = starts // height, (ends - 1) // height
    # A column that an object fills to its end, and continues in the next one.
    crossed = last - first
    offset = np.arange(int(crossed.sum())) - np.repeat(np.cumsum(crossed) - crossed, crossed)
    column = np.repeat(first, crossed) + offset
    inner = [column * (height + 1) + height, (column + 1) * (height + 1)]
    outer = [first * (height + 1) + starts % height, last * (height + 1) + (ends - 1) % height + 1]
    return np.sort(np.concatenate([*outer, *inner]))


def _sides(ends: IntArray, height: int) -> IntArray:
    """Return the ends of the vertical sides of the outline, where a pixel differs from its left."""
    return _odd(np.concatenate([ends, ends + height + 1]))


def _odd(positions: IntArray) -> IntArray:
    """Return the positions that occur once of those that occur at most twice, ordered."""
    ordered = np.sort(positions)
    different = np.flatnonzero(np.diff(ordered, prepend=-1, append=-1))
    counts = np.diff(different)
    once: IntArray = ordered[different[:-1][counts == 1]]
    return once


def _merged(lengths: IntArray, inside: npt.NDArray[np.bool_]) -> IntArray:
    """Return run lengths, background first, of pieces that are inside or not."""
    filled = lengths > 0
    lengths, inside = lengths[filled], inside[filled]
    starts = np.flatnonzero(np.diff(inside, prepend=~inside[:1]))
    runs = np.add.reduceat(lengths, starts)
    return np.concatenate([[0], runs]) if inside[0] else runs


class _Reader:
    """Reads bits, the highest of a byte first.  Raises ``ValueError`` at the end of the stream."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0

    def read(self, count: int) -> int:
        """Return the number in the next *count* bits, at most 56."""
        first, skipped = divmod(self._place, 8)
        self._advance(count)
        window = int.from_bytes(self._data[first : first + 8].ljust(8, b"\0"), "big")
        return (window >> (64 - skipped - count)) & ((1 << count) - 1)

    def bytes(self, count: int) -> npt.NDArray[np.uint8]:
        """Return the next *count* values of 8 bits."""
        first, skipped = divmod(self._place, 8)
        self._advance(8 * count)
        found = np.frombuffer(
            self._data, dtype=np.uint8, count=-(-self._place // 8) - first, offset=first
        )
        if not skipped:
            return found
        high, low = found[:-1].astype(np.uint16), found[1:]
        return (((high << 8) | low) >> (8 - skipped)).astype(np.uint8)

    def _advance(self, count: int) -> None:
        self._place += count
        if self._place > 8 * len(self._data):
            raise ValueError(f"ends within a run, after {len(self._data)} bytes")


def _codes(rows: IntArray) -> list[npt.NDArray[np.uint8]]:
    """Return the bits of all runs, background first, in chunks."""
    lengths = rows * _CHANNELS
    pieces = -(-lengths // _LONGEST)
    value = np.repeat(np.arange(rows.size) % 2 * 255, pieces)
    last = np.cumsum(pieces)[pieces > 0] - 1
    length = np.full(value.size, _LONGEST)
    length[last] = lengths[pieces > 0] - (pieces[pieces > 0] - 1) * _LONGEST
    return [
        _bits(length[first : first + _CHUNK_CODES], value[first : first + _CHUNK_CODES])
        for first in range(0, value.size, _CHUNK_CODES)
    ]


def _bits(length: IntArray, value: IntArray) -> npt.NDArray[np.uint8]:
    index = np.searchsorted(1 << _WIDTHS, length)
    width = _WIDTHS[index]
    prefix = (len(_WIDTHS) + index) << width
    code = ((prefix | (length - 1)) << _VALUE_BITS) | value
    nbits = _PREFIX_BITS + width + _VALUE_BITS
    aligned = (code << (32 - nbits)).astype(">u4")
    bits = np.unpackbits(aligned.view(np.uint8)).reshape(-1, 32)[:, :_CODE_BITS]
    used: npt.NDArray[np.uint8] = bits[np.arange(_CODE_BITS) < nbits[:, None]]
    return used
