"""COCO run lengths: column-major, starting with a run of background.

``encode`` uses pycocotools.  Strings from outside are parsed here, in numpy, and never reach
its C code, which trusts them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco

from samserve.types import BoolArray, CocoRle, Size

IntArray = npt.NDArray[np.int64]

_MAX_PIXELS = 2**31 - 1
_MAX_CHARS_PER_RUN = 7
"""Seven characters of five bits hold any run, or difference of runs, of 2**31 pixels."""


def encode(mask: BoolArray) -> CocoRle:
    """Encode bool ``[h, w]``."""
    packed = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return CocoRle(Size(*mask.shape), packed["counts"].decode("ascii"))


def decode(rle: CocoRle) -> BoolArray:
    """Decode to bool ``[h, w]``; ``ValueError`` if the run lengths are not those of the size.

    Allocates what ``rle.size`` says: compare that with the size of the image first.
    """
    runs = _parse(rle.size, rle.counts)
    inside = np.arange(runs.size) % 2 == 1
    return np.repeat(inside, runs).reshape(rle.size.width, rle.size.height).T


def area(rle: CocoRle) -> int:
    """Count the pixels inside without decoding."""
    return int(_parse(rle.size, rle.counts)[1::2].sum())


def uncompressed(rle: CocoRle) -> list[int]:
    """List the run lengths, background first, as the reference's ``uncompressed_rle`` does."""
    return [int(run) for run in _parse(rle.size, rle.counts)]


def validate(size: Size, counts: str) -> None:
    """Raise ``ValueError``, with one line that says why, unless *counts* fits *size* exactly.

    Allocates memory in proportion to the length of *counts* only, whatever *size* says.
    """
    _parse(size, counts)


def _parse(size: Size, counts: str) -> IntArray:
    """Read and check the run lengths, int64 ``[runs]``."""
    if not (size.height > 0 and size.width > 0 and size.pixels <= _MAX_PIXELS):
        raise ValueError(f"size {size.height}x{size.width} is not between 1 and 2**31-1 pixels")
    if len(counts) > _MAX_CHARS_PER_RUN * (size.pixels + 1):
        raise ValueError(f"counts has {len(counts)} characters, too many for {size.pixels} pixels")
    runs = _undo_differences(_numbers(counts))
    if ((runs < 0) | (runs > size.pixels)).any():
        raise ValueError(f"counts has a run that is negative or over {size.pixels} pixels")
    total = int(runs.sum())
    if total != size.pixels:
        raise ValueError(f"counts sums to {total} pixels, the size has {size.pixels}")
    return runs


def _numbers(counts: str) -> IntArray:
    """Split the string into signed numbers of 5 bits a character, lowest first.

    Bit 5 of a character says that another follows, bit 4 of the last one is the sign.
    Source: cocoapi common/maskApi.c rleToString, rleFrString.
    """
    try:
        chars = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError as error:
        raise ValueError("counts has characters that are not ASCII") from error
    if not chars.size:
        raise ValueError("counts is empty")
    if ((chars < 0) | (chars > 63)).any():
        raise ValueError("counts has characters outside '0' to 'o'")
    ends = np.flatnonzero(chars & 32 == 0)
    if not ends.size or ends[-1] != chars.size - 1:
        raise ValueError("counts ends within a run")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _MAX_CHARS_PER_RUN:
        raise ValueError(f"counts has a run of more than {_MAX_CHARS_PER_RUN} characters")
    shift = 5 * (np.arange(chars.size) - np.repeat(starts, lengths))
    numbers = np.add.reduceat((chars & 31) << shift, starts)
    negative = chars[ends] & 16 != 0
    return np.asarray(numbers - (negative.astype(np.int64) << (5 * lengths)), dtype=np.int64)


def _undo_differences(numbers: IntArray) -> IntArray:
    """From the fourth on, a number is the difference to the run two before it."""
    runs = numbers.copy()
    runs[1::2] = np.cumsum(numbers[1::2])
    runs[2::2] = np.cumsum(numbers[2::2])
    return runs
