"""COCO run lengths: column-major, starting with a run of background.

``encode`` uses pycocotools.  Strings from outside are parsed here, in numpy, and never reach
its C code, which trusts them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from samserve.types import BoolArray, CocoRle, Size

IntArray = npt.NDArray[np.int64]

_MAX_PIXELS = 2**31 - 1
_MAX_CHARS_PER_RUN = 7
"""Seven characters of five bits hold any run, or difference of runs, of 2**31 pixels."""
_LONG_RUN = f"counts has a run of more than {_MAX_CHARS_PER_RUN} characters"
_PIECE_CHARS = 1 << 16
# Characters that say that another follows.
_CONTINUING = bytes(range(48 + 32, 48 + 64))


def encode(mask: BoolArray) -> CocoRle:
    """Encode bool ``[h, w]``."""
    packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return CocoRle(Size(*mask.shape), packed["counts"].decode("ascii"))


def decode(rle: CocoRle) -> BoolArray:
    """Decode to bool ``[h, w]``; ``ValueError`` if the run lengths are not those of the size.

    Allocates what ``rle.size`` says: compare that with the size of the image first.
    """
    parts = [
        np.repeat(np.arange(first, first + runs.size) % 2 == 1, runs)
        for first, runs in _runs(rle.size, rle.counts)
    ]
    pixels = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return pixels.reshape(rle.size.width, rle.size.height).T


def uncompressed(rle: CocoRle) -> list[int]:
    """List the run lengths, background first, as the reference's ``uncompressed_rle`` does."""
    return [run for _, runs in _runs(rle.size, rle.counts) for run in runs.tolist()]


def validate(size: Size, counts: str) -> None:
    """Raise ``ValueError``, with one line that says why, unless *counts* fits *size* exactly.

    Allocates a few MiB beside a copy of *counts*, whatever *size* says.
    """
    for _ in _runs(size, counts):
        pass


def _runs(size: Size, counts: str) -> Iterator[tuple[int, IntArray]]:
    """Read and check the run lengths, some at a time: the index of the first, and int64 ``[n]``.

    That they fit *size* exactly is known at the end only; before, they never exceed it.
    """
    if not (size.height > 0 and size.width > 0 and size.pixels <= _MAX_PIXELS):
        raise ValueError(f"size {size.height}x{size.width} is not between 1 and 2**31-1 pixels")
    if len(counts) > _MAX_CHARS_PER_RUN * (size.pixels + 1):
        raise ValueError(f"counts has {len(counts)} characters, too many for {size.pixels} pixels")
    first, total, last = 0, 0, [0, 0]
    for piece in _pieces(counts):
        runs = _undo_differences(_numbers(piece), first, last)
        if ((runs < 0) | (runs > size.pixels)).any():
            raise ValueError(f"counts has a run that is negative or over {size.pixels} pixels")
        total += int(runs.sum())
        if total > size.pixels:
            break
        yield first, runs
        first += runs.size
    if total != size.pixels:
        raise ValueError(f"counts sums to {total} pixels, the size has {size.pixels}")


def _pieces(counts: str) -> Iterator[bytes]:
    """Cut the string between runs, so that what is made of a piece stays small."""
    try:
        data = counts.encode("ascii")
    except UnicodeEncodeError as error:
        raise ValueError("counts has characters that are not ASCII") from error
    if not data:
        raise ValueError("counts is empty")
    at = 0
    while at < len(data):
        piece = data[at : at + _PIECE_CHARS]
        if at + len(piece) < len(data):
            piece = piece.rstrip(_CONTINUING)
            if not piece:
                raise ValueError(_LONG_RUN)
        yield piece
        at += len(piece)


def _numbers(piece: bytes) -> IntArray:
    """Split characters into signed numbers of 5 bits a character, lowest first.

    Bit 5 of a character says that another follows, bit 4 of the last one is the sign.
    Source: cocoapi common/maskApi.c rleToString, rleFrString.
    """
    chars = np.frombuffer(piece, dtype=np.uint8).astype(np.int64) - 48
    if ((chars < 0) | (chars > 63)).any():
        raise ValueError("counts has characters outside '0' to 'o'")
    ends = np.flatnonzero(chars & 32 == 0)
    if not ends.size or ends[-1] != chars.size - 1:
        raise ValueError("counts ends within a run")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARS_PER_RUN:
        raise ValueError(_LONG_RUN)
    shift = 5 * (np.arange(chars.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((chars & 31) << shift, starts)
    negative = chars[ends] & 16 != 0
    return np.asarray(numbers - (negative.astype(np.int64) << (5 * lengths)), dtype=np.int64)


def _undo_differences(numbers: IntArray, first: int, last: list[int]) -> IntArray:
    """From the fourth on, a number is the difference to the run two before it.

    *first* is the index of the first number; *last* holds the last runs of even and of odd index
    that the first difference refers to, and is brought up to date.
    """
    runs = numbers.copy()
    for parity in (0, 1):
        # The first run of all is no difference, and none refers to it.
        begin = 2 if first == 0 and parity == 0 else (parity - first) % 2
        summed = np.cumsum(numbers[begin::2]) + last[parity]
        runs[begin::2] = summed
        if summed.size:
            last[parity] = int(summed[-1])
    return runs
