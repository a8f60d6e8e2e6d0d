"""Seeded, deterministic mutations of bytes."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from random import Random

from fuzz.target import Target

DOUBLES = (
    *(0.0, -0.0, 0.5, 1.0, -1.0, 5.0, 16.0, 24.0, 1e-9, 0.999999999, 1.000000001),
    *(1e6, 1e7, 3.4e38, 3.5e38, 1e308, -1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan")),
)
INTS = (*(0, 1, 2, 7, 8, 16, 255, 256, 4096), *(-1, -(2**31), 2**16 - 1, 2**24, 2**31 - 1))
# Values that parsers often mishandle, as encoded in files and in messages.
_WORDS = (
    *(struct.pack(order + "i", number) for number in INTS for order in "<>"),
    *(struct.pack("<d", number) for number in DOUBLES),
    *(b"\xff" * 9, b"%s{0}", b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"A" * 129, b"../", b"\r\n"),
)


def mutated(data: bytes, words: Sequence[bytes], random: Random) -> bytes:
    """Change bytes at one or two positions, regardless of their format."""
    for _ in range(random.choice((1, 1, 2))):
        start = random.randrange(len(data) + 1)
        piece = data[start : start + random.choice((1, 1, 1, 2, 4, 4, 8, 32))]
        flipped = bytes([piece[0] ^ 1 << random.randrange(8)]) + piece[1:] if piece else b""
        word = random.choice(words if words and random.random() < 0.5 else _WORDS)
        replacements: tuple[bytes, ...] = (
            flipped,
            flipped,
            b"",
            piece * 2,
            piece * 9,
            random.randbytes(len(piece)),
        )
        end = start + len(piece)
        if random.random() < 0.3:
            replacements, end = (word,), start + random.choice((0, len(word)))
        data = data[:start] + random.choice(replacements) + data[end:]
    return data


def inputs(target: Target, count: int, seed: int, max_bytes: int) -> Iterator[bytes]:
    """Yield *count* inputs of at most *max_bytes*: the seeds, then mutations of mutations.

    The same arguments always give the same inputs.
    """
    random = Random(seed)
    seeds = [data[:max_bytes] for data in target.seeds()]
    yield from seeds[:count]
    pool = list(seeds)
    for _ in range(count - len(seeds)):
        # Seeds more often than their mutations, most of which are rejected early.
        data = random.choice(pool if random.random() < 0.3 else seeds)
        if random.random() < 0.1:
            data = data[: random.randrange(len(data) + 1)] + random.choice(seeds)[len(data) // 2 :]
        if target.mutate and random.random() < 0.6:
            data = target.mutate(data, random)[:max_bytes]
        else:
            data = mutated(data, target.words, random)[:max_bytes]
        if random.random() < 0.1:
            pool.append(data)
        yield data
