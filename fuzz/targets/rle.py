"""`core.rle`: run lengths of any size and encoding.

An input is height and width, four bytes each, and the characters of the counts.  With a height of
-1, it is run lengths below 16, one byte each, and the size of the mask is their sum.
"""

from __future__ import annotations

import struct
import warnings
from random import Random

import numpy as np
from pycocotools import mask as coco
from samserve.core import rle, run_lengths
from samserve.types import CocoRle, Size

from fuzz.target import Rejected

# Larger masks are only validated, as a server compares with the image's size first.
_MAX_PIXELS = 1 << 14


def run(data: bytes) -> None:
    """Validate; then all decoders must return the same mask."""
    height, width = struct.unpack("<ii", data[:8].ljust(8, b"\0"))
    encoded = CocoRle(Size(height, width), data[8:].decode("latin-1"))
    if height == -1:
        encoded = _of_runs([byte % 16 for byte in data[8:]])
    try:
        rle.validate(encoded.size, encoded.counts)
    except ValueError as error:
        raise _documented(error) from error
    runs = rle.uncompressed(encoded)
    assert min(runs) >= 0
    assert sum(runs) == encoded.size.pixels
    if encoded.size.pixels <= _MAX_PIXELS:
        _check_mask(encoded)


def _of_runs(runs: list[int]) -> CocoRle:
    """Encode small and empty runs as COCO does (maskApi.c, rleToString)."""
    changes = [run - runs[index - 2] if index > 2 else run for index, run in enumerate(runs)]
    return CocoRle(Size(1, max(sum(runs), 1)), "".join(chr(48 + (step & 31)) for step in changes))


def _documented(error: ValueError) -> Exception:
    """Return `Rejected` for a documented error, or *error* for a `ValueError` of numpy."""
    text = str(error)
    documented = text.startswith(("size ", "counts ")) and "\n" not in text and len(text) < 200
    return Rejected(text) if documented else error


def _check_mask(encoded: CocoRle) -> None:
    mask = rle.decode(encoded)
    assert mask.dtype == np.bool_
    assert mask.shape == (encoded.size.height, encoded.size.width)
    assert int(mask.sum()) == sum(rle.uncompressed(encoded)[1::2])
    assert np.array_equal(_by_pycocotools(encoded), mask)
    encoded_again = rle.encode(mask)
    assert encoded_again.size == encoded.size
    assert np.array_equal(rle.decode(encoded_again), mask)
    assert run_lengths.encode(mask) == encoded_again


def _by_pycocotools(encoded: CocoRle) -> np.ndarray:
    size = [encoded.size.height, encoded.size.width]
    with warnings.catch_warnings():
        # numpy deprecates a protocol that its decoder uses.
        warnings.simplefilter("ignore", DeprecationWarning)
        return np.asarray(coco.decode({"size": size, "counts": encoded.counts.encode("ascii")}))


def encode_input(size: Size, counts: str) -> bytes:
    """Return an input."""
    return struct.pack("<ii", size.height, size.width) + counts.encode("latin-1", "replace")


def random_mask(size: Size, random: Random) -> CocoRle:
    """Encode a mask of stripes or of noise."""
    generator = np.random.default_rng(random.getrandbits(32))
    density = random.choice((0.0, 0.02, 0.5, 0.98, 1.0))
    return rle.encode(generator.random((size.height, size.width)) < density)


def seeds() -> list[bytes]:
    """Return valid masks of several shapes, and nearly valid ones."""
    random = Random(0)
    sizes = [Size(1, 1), Size(5, 7), Size(16, 24), Size(1, 300), Size(300, 1), Size(64, 64)]
    valid = [
        encode_input(size, random_mask(size, random).counts) for size in sizes for _ in range(3)
    ]
    invalid = [
        encode_input(Size(0, 0), ""),
        encode_input(Size(-1, -1), "1"),
        encode_input(Size(2**31 - 1, 2**31 - 1), "o" * 6 + "O"),
        encode_input(Size(46340, 46340), "PTo5"),
        encode_input(Size(1, 2**31 - 1), "ooooo1"),
        encode_input(Size(2, 2), "0" * 100),
        encode_input(Size(2, 2), "0031"),
        encode_input(Size(2, 2), "oooooooooooooooooooooo0"),
    ]
    runs = [
        encode_input(Size(-1, 0), text) for text in ("\x02\x03\x01", "\0\x05" * 3, "\1\2\3" * 30)
    ]
    return valid + invalid + runs
