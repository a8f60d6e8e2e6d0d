"""Divides large values into pieces, so that a node serves other clients between them.

A node runs one command at a time.  A script with 8 MiB of arguments, or one write of 8 MiB to its
append-only file, delays the commands of all other clients.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from samserve.cache.shared import value_format
from samserve.cache.shared.base import Command
from samserve.cache.shared.scripts import PIECE, PUT, PUT_PIECE, VALUE

PIECE_BYTES = 512 << 10
# More than any embedding; a corrupt prefix must not cause millions of field names.
_MAX_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Stored:
    """A value as it was read: the fields that hold it, in order, and its seconds to live.

    ``ttl_s`` is None without expiry.  Fields that are missing are omitted.
    """

    fields: dict[str, bytes]
    ttl_s: float | None

    @property
    def nbytes(self) -> int:
        """Bytes of all fields."""
        return sum(map(len, self.fields.values()))

    def joined(self) -> bytes:
        """Return the value."""
        pieces = list(self.fields.values())
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def digests(self) -> list[str]:
        """Return each field, followed by its SHA-1."""
        return [
            text
            for name, piece in self.fields.items()
            for text in (name, hashlib.sha1(piece, usedforsecurity=False).hexdigest())
        ]


def put_commands(
    name: bytes, marker: bytes, data: bytes | bytearray, ttl_ms: int
) -> Sequence[Command]:
    """Return the commands that write a value, of which the last has the result, see `PUT`."""
    content = memoryview(data)
    checksum = value_format.checksum(data)
    fields = _names(checksum, len(data) - PIECE_BYTES)
    starts = range(PIECE_BYTES, len(data), PIECE_BYTES)
    pieces: list[Command] = [
        ("EVAL", PUT_PIECE, 1, name, field, content[start : start + PIECE_BYTES], ttl_ms)
        for field, start in zip(fields, starts, strict=True)
    ]
    first = content[:PIECE_BYTES]
    return [*pieces, ("EVAL", PUT, 1, name, marker, first, checksum, ttl_ms, *fields)]


def following(first: bytes) -> list[str]:
    """Return the fields with the rest of a value, of which *first* is the content of `VALUE`."""
    nbytes = value_format.total_bytes(first)
    if nbytes is None or nbytes > _MAX_BYTES:
        return []
    return _names(value_format.checksum(first), nbytes - len(first))


def found_fields(
    first: bytes, names: Sequence[str], rest: Sequence[bytes | None]
) -> dict[str, bytes]:
    """Return the fields of a value that were found, of *names* those with a content in *rest*."""
    found = {name: piece for name, piece in zip(names, rest, strict=True) if piece is not None}
    return {VALUE: first, **found}


def _names(checksum: bytes, nbytes: int) -> list[str]:
    count = max(0, -(-nbytes // PIECE_BYTES))
    return [f"{PIECE}:{checksum.hex()}:{number}" for number in range(1, count + 1)]
