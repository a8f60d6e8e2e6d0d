"""`core.rle`: run lengths of any size and spelling.

An input is height and width, four bytes each, and the characters of the counts; or with a height of
-1 run lengths below 16, one byte each, of which a mask is made that is not too long for them.
"""

from __future__ import annotations

import struct
import warnings
from random import Random

import numpy as np
from pycocotools import mask as coco
from samserve.core import rle
from samserve.types import CocoRle, Size

from fuzz.target import Refused

# Larger masks are only checked, as a server does that compares with its image's size first.
_MOST_PIXELS = 1 << 14


def run(data: bytes) -> None:
    """Validate; then every way to read the runs must tell the same mask."""
    height, width = struct.unpack("<ii", data[:8].ljust(8, b"\0"))
    given = CocoRle(Size(height, width), data[8:].decode("latin-1"))
    if height == -1:
        given = _of_runs([byte % 16 for byte in data[8:]])
    try:
        rle.validate(given.size, given.counts)
    except ValueError as error:
        raise _documented(error) from error
    runs = rle.uncompressed(given)
    assert min(runs) >= 0
    assert sum(runs) == given.size.pixels
    if given.size.pixels <= _MOST_PIXELS:
        _check_mask(given)


def _of_runs(runs: list[int]) -> CocoRle:
    """Spell small runs as COCO does (maskApi.c, rleToString), also empty ones."""
    changes = [run - runs[at - 2] if at > 2 else run for at, run in enumerate(runs)]
    return CocoRle(Size(1, max(sum(runs), 1)), "".join(chr(48 + (step & 31)) for step in changes))


def _documented(error: ValueError) -> Exception:
    """Tell our own one line from an error of numpy that happens to be a `ValueError`."""
    text = str(error)
    ours = text.startswith(("size ", "counts ")) and "\n" not in text and len(text) < 200
    return Refused(text) if ours else error


def _check_mask(given: CocoRle) -> None:
    mask = rle.decode(given)
    assert mask.dtype == np.bool_
    assert mask.shape == (given.size.height, given.size.width)
    assert int(mask.sum()) == sum(rle.uncompressed(given)[1::2])
    assert np.array_equal(_by_pycocotools(given), mask)
    again = rle.encode(mask)
    assert again.size == given.size
    assert np.array_equal(rle.decode(again), mask)


def _by_pycocotools(given: CocoRle) -> np.ndarray:
    size = [given.size.height, given.size.width]
    with warnings.catch_warnings():
        # numpy deprecates what its decoder does.
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco.decode({"size": size, "counts": given.counts.encode("ascii")}))


def packed(size: Size, counts: str) -> bytes:
    """Write an input."""
    return struct.pack("<ii", size.height, size.width) + counts.encode("latin-1", "replace")


def random_mask(size: Size, random: Random) -> CocoRle:
    """Encode a mask of stripes or of noise."""
    generator = np.random.default_rng(random.getrandbits(32))
    share = random.choice((0.0, 0.02, 0.5, 0.98, 1.0))
    return rle.encode(generator.random((size.height, size.width)) < share)


def seeds() -> list[bytes]:
    """Return valid masks of several shapes, and some that are nearly valid."""
    random = Random(0)
    sizes = [Size(1, 1), Size(5, 7), Size(16, 24), Size(1, 300), Size(300, 1), Size(64, 64)]
    valid = [packed(size, random_mask(size, random).counts) for size in sizes for _ in range(3)]
    hostile = [
        packed(Size(0, 0), ""),
        packed(Size(-1, -1), "1"),
        packed(Size(2**31 - 1, 2**31 - 1), "o" * 6 + "O"),
        packed(Size(46340, 46340), "PTo5"),
        packed(Size(1, 2**31 - 1), "ooooo1"),
        packed(Size(2, 2), "0" * 100),
        packed(Size(2, 2), "0031"),
        packed(Size(2, 2), "oooooooooooooooooooooo0"),
    ]
    runs = [packed(Size(-1, 0), text) for text in ("\x02\x03\x01", "\0\x05" * 3, "\1\2\3" * 30)]
    return valid + hostile + runs
