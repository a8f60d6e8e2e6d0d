"""`core.rle`: run lengths of any size and spelling.

An input is height and width, four bytes each, and the characters of the counts.
"""

from __future__ import annotations

import struct
import warnings
from random import Random

import numpy as np
from pycocotools import mask as coco
from samserve.core import rle
from samserve.types import CocoRle, Size

from fuzz import mutation
from fuzz.target import Refused

# Larger masks are only checked, as a server does that compares with its image's size first.
_MOST_PIXELS = 1 << 14
_ALPHABET = "".join(chr(48 + value) for value in range(64))


def run(data: bytes) -> None:
    """Validate; then every way to read the runs must tell the same mask."""
    height, width = struct.unpack("<ii", data[:8].ljust(8, b"\0"))
    given = CocoRle(Size(height, width), data[8:].decode("latin-1"))
    try:
        rle.validate(given.size, given.counts)
    except ValueError as error:
        raise _documented(error) from error
    runs = rle.uncompressed(given)
    assert min(runs) >= 0
    assert sum(runs) == given.size.pixels
    assert sum(runs[1::2]) == rle.area(given)
    if given.size.pixels <= _MOST_PIXELS:
        _check_mask(given)


def _documented(error: ValueError) -> Exception:
    """Tell our own one line from an error of numpy that happens to be a `ValueError`."""
    text = str(error)
    ours = text.startswith(("size ", "counts ")) and "\n" not in text and len(text) < 200
    return Refused(text) if ours else error


def _check_mask(given: CocoRle) -> None:
    mask = rle.decode(given)
    assert mask.dtype == np.bool_
    assert mask.shape == (given.size.height, given.size.width)
    assert int(mask.sum()) == rle.area(given)
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
    """Give valid masks of several shapes, and some that are nearly valid."""
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
        packed(Size(2, 2), "oooooooooooooooooooooo0"),
    ]
    return valid + hostile


def mutate(data: bytes, random: Random) -> bytes:
    """Change the size, or write other runs of the alphabet."""
    height, width = struct.unpack("<ii", data[:8].ljust(8, b"\0"))
    counts = data[8:].decode("latin-1")
    kind = random.randrange(6)
    if kind == 0:
        height = mutation.integer(random)
    elif kind == 1:
        height, width = width, height
    elif kind == 2:
        size = Size(random.randrange(1, 40), random.randrange(1, 40))
        return packed(size, random_mask(size, random).counts)
    elif kind == 3:
        return _of_runs(random)
    else:
        counts = _other_counts(counts, random)
    return packed(Size(height, width), counts)


def _of_runs(random: Random) -> bytes:
    """Write runs that need not be those of a mask: empty ones, huge ones, but the sum fits."""
    runs = [abs(mutation.integer(random)) for _ in range(random.randrange(1, 12))]
    if random.random() < 0.7:
        runs = [run % random.choice((1, 3, 50)) for run in runs]
    return packed(Size(1, min(max(sum(runs), 1), 2**31 - 1)), counts_of(runs))


def counts_of(runs: list[int]) -> str:
    """Spell run lengths as COCO does (maskApi.c, rleToString), also impossible ones."""
    spelled = []
    for index, run in enumerate(runs):
        spelled.append(_spelled(run - runs[index - 2] if index > 2 else run))
    return "".join(spelled)


def _spelled(number: int) -> str:
    characters, more = "", True
    while more:
        low = number & 31
        number >>= 5
        more = number != (-1 if low & 16 else 0)
        characters += chr(48 + (low | 32 * more))
    return characters


def _other_counts(counts: str, random: Random) -> str:
    characters = list(counts)
    for _ in range(random.randrange(1, 4)):
        at = random.randrange(len(characters) + 1)
        replaced = random.randrange(3)
        characters[at : at + replaced] = random.choices(_ALPHABET, k=random.randrange(3))
    return "".join(characters)
