"""Seeded mutations of plain bytes, and the numbers that parsers stumble over."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Sequence
from random import Random

from fuzz.target import Target

INTS = (0, 1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 63, 64, 127, 128, 255, 256, 1023, 1024, 4096)
HOSTILE_INTS = (
    *(-1, -2, -128, -(2**15), -(2**31), -(2**31) + 1),
    *(2**15 - 1, 2**15, 2**16 - 1, 2**16, 2**24, 2**31 - 2, 2**31 - 1),
)
DOUBLES = (
    *(0.0, -0.0, 0.5, 1.0, -1.0, 5.0, 16.0, 24.0, 1e-9, 0.999999999, 1.000000001),
    *(1e6, 1e7, 3.4e38, 3.5e38, 1e308, -1e308, 5e-324),
    *(float("inf"), float("-inf"), float("nan")),
)
TEXTS = (
    *("", "a", "fake", "%s%n{0}{x}", "\x00", "\u0000\uffff", "\U0001f600" * 70, "é" * 129),
    *("A" * 128, "A" * 129, "\u202e\u200b", "../../etc/passwd", "\r\nx: y"),
)


def integer(random: Random) -> int:
    """Choose a signed 32-bit integer: mostly small, sometimes at an edge."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(HOSTILE_INTS)
    if kind == 1:
        return random.randrange(-(2**31), 2**31)
    return random.choice(INTS) if kind == 2 else random.randrange(40)


def double(random: Random) -> float:
    """Choose a float: mostly inside a small picture, sometimes special."""
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(DOUBLES)
    if kind == 1:
        return float(struct.unpack("<d", random.randbytes(8))[0])
    return random.uniform(-2, 30) if kind == 2 else random.random()


def text(random: Random) -> str:
    """Choose a text: known trouble, or letters of every width."""
    if random.random() < 0.6:
        return random.choice(TEXTS)
    top = random.choice((0x7F, 0xFF, 0xD7FF))
    return "".join(chr(random.randrange(top + 1)) for _ in range(random.randrange(24)))


def _flip(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _set(data: bytearray, random: Random) -> None:
    if data:
        data[random.randrange(len(data))] = random.choice(
            (0, 1, 127, 128, 255, random.getrandbits(8))
        )


def _number(data: bytearray, random: Random) -> None:
    width = random.choice((1, 2, 4, 8))
    if len(data) < width:
        return
    at = random.randrange(len(data) - width + 1)
    value = integer(random) & (1 << 8 * width) - 1
    order = random.choice(("little", "big"))
    data[at : at + width] = value.to_bytes(width, "big" if order == "big" else "little")


def _insert(data: bytearray, random: Random) -> None:
    at = random.randrange(len(data) + 1)
    data[at:at] = random.randbytes(random.randrange(1, 9))


def _delete(data: bytearray, random: Random) -> None:
    start, end = _span(data, random)
    del data[start:end]


def _repeat(data: bytearray, random: Random) -> None:
    start, end = _span(data, random)
    data[end:end] = data[start:end] * random.choice((1, 1, 2, 8))


def _move(data: bytearray, random: Random) -> None:
    start, end = _span(data, random)
    piece = data[start:end]
    at = random.randrange(len(data) + 1)
    data[at : at + len(piece)] = piece


def _cut(data: bytearray, random: Random) -> None:
    del data[random.randrange(len(data) + 1) :]


_STEPS: tuple[Callable[[bytearray, Random], None], ...] = (
    *(_flip, _flip, _set, _set, _number, _number, _insert, _delete, _repeat, _move, _cut),
)


def _span(data: bytearray, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data) + 1)
    return start, min(len(data), start + random.choice((1, 2, 4, 8, 32, 256)))


def mutated(data: bytes, random: Random) -> bytes:
    """Change bytes without knowing what they mean, in one to four places."""
    changed = bytearray(data)
    for _ in range(random.randrange(1, 5)):
        random.choice(_STEPS)(changed, random)
    return bytes(changed)


def spliced(data: bytes, other: bytes, random: Random) -> bytes:
    """Put the beginning of one input before the end of another."""
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


def inputs(target: Target, count: int, seed: int, most_bytes: int) -> Iterator[bytes]:
    """Give *count* inputs of at most *most_bytes*: the seeds, then mutations of mutations.

    The same arguments always give the same inputs.
    """
    random = Random(seed)
    pool = [data[:most_bytes] for data in target.seeds()]
    yield from pool[:count]
    fixed = len(pool)
    for _ in range(count - len(pool)):
        data = _next(target, pool, fixed, random)[:most_bytes]
        # Some stay, so that changes add up.
        if len(pool) < 2 * fixed:
            pool.append(data)
        elif random.random() < 0.1:
            pool[random.randrange(fixed, len(pool))] = data
        yield data


def _next(target: Target, pool: Sequence[bytes], fixed: int, random: Random) -> bytes:
    # Seeds more often than what became of them, which is refused early for the most part.
    data = random.choice(pool if random.random() < 0.5 else pool[:fixed])
    kind = random.random()
    if kind < 0.6:
        return target.mutate(data, random)
    if kind < 0.9:
        return mutated(data, random)
    return spliced(data, random.choice(pool), random)
