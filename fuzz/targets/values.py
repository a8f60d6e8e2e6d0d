"""`stores.shared.value_format`: what a server may find as an embedding in Redis or Valkey.

An input is one byte of flags, one byte with the length of the key, the key, and the value.  A flag
says that lengths and checksum are put right, so that what is behind them is reached; another that
the value is still to be written, and there are only its header, a zero and its payload.
"""

from __future__ import annotations

import struct
from random import Random

import numpy as np
import xxhash
from samserve.stores.shared import value_format
from samserve.types import Array, EmbeddingFacts, Size

from fuzz.target import Refused

_SEALED, _WRITTEN = 1, 2
_PREFIX_BYTES = 40
_MARK = b"samserve\1\0"
_KEY = b"samserve:{tenant}:embedding"
_FACTS = EmbeddingFacts(Size(6, 9), "fake", "d" * 64, "sam-1")
WORDS = (
    *(b"model_name", b"preprocessing", b"image_height", b"tensors", b"name", b"dtype", b"shape"),
    *(b"<f2", b"<f4", b"<f8", b"i1", b"u1", b"<i8", b"offset", b"nbytes", b"[]", b"{}", b"null"),
)


def run(data: bytes) -> None:
    """Parse a value."""
    flags, key, value = _parsed(data)
    if flags & _WRITTEN:
        header, _, payload = value.partition(b"\0")
        value = written(key, header, payload)
    elif flags & _SEALED:
        value = sealed(key, value)
    # Told by magic and format alone; the other refusal is a finding.
    refusal = value_format.Damaged if value.startswith(_MARK) else value_format.OtherFormat
    try:
        parsed = value_format.parse(key, value)
    except refusal as error:
        raise Refused(str(error)) from error
    assert value.startswith(_MARK)
    _check(key, value, parsed)


def _check(key: bytes, value: bytes, parsed: value_format.Value) -> None:
    """What was parsed is all that the value says, and belongs to its key."""
    tensors = {spec.name: np.empty(spec.shape, spec.dtype) for spec in parsed.specs}
    assert sum(spec.nbytes for spec in parsed.specs) < len(value)
    parsed.copy_into(tensors)
    assert value_format.encode(key, parsed.facts, tensors) == value
    try:
        value_format.parse(key + b"'", value)
    except value_format.Damaged:
        return
    raise AssertionError("taken under another key")


def sealed(key: bytes, value: bytes) -> bytes:
    """Return a value the right length of the payload, and the checksum."""
    if len(value) < _PREFIX_BYTES:
        return value
    rest = value[_PREFIX_BYTES:]
    header_bytes = min(int.from_bytes(value[12:16], "little"), len(rest))
    checked = value[:12] + struct.pack("<IQ", header_bytes, len(rest) - header_bytes)
    sum_of = struct.pack("<Q", len(key)) + key + checked + rest
    return checked + xxhash.xxh3_128_digest(sum_of) + rest


def written(
    key: bytes, header: bytes, payload: bytes, *, version: int = 1, reserved: int = 0
) -> bytes:
    """Write a value of any content, with the right lengths and checksum."""
    prefix = struct.pack("<8sHHIQ16x", b"samserve", version, reserved, len(header), len(payload))
    return sealed(key, prefix + header + payload)


def _parts(value: bytes) -> tuple[bytes, bytes]:
    """Return header and payload, as far as there are any."""
    end = _PREFIX_BYTES + int.from_bytes(value[12:16], "little")
    return value[_PREFIX_BYTES:end], value[end:]


def _parsed(data: bytes) -> tuple[int, bytes, bytes]:
    flags, length = data[:2].ljust(2, b"\0")
    return flags, data[2 : 2 + length], data[2 + length :]


def _packed(flags: int, key: bytes, value: bytes) -> bytes:
    key = key[:255]
    return bytes([flags, len(key)]) + key + value


def seeds() -> list[bytes]:
    """Return embeddings like those of SAM 1 and SAM 2, and what others would write."""
    random = Random(0)
    ours = [
        value_format.encode(_KEY, _FACTS, tensors)
        for tensors in (
            {"image_embedding": np.zeros((4, 8, 8), "<f2")},
            {"image_embed": _tensor("<f4", (2, 3, 5), random), "number": _tensor("u1", (), random)},
            {f"high_res_{at}": _tensor("<f2", (9, 2**at), random) for at in range(3)},
            {"é\n\U0001f600": _tensor("<i8", (1,) * 8, random)},
        )
    ]
    header, payload = _parts(ours[1])
    others = [
        *(b"", b"samserve", b"42", b"\x80\x04}\x94.", _MARK, written(_KEY, b"", b"")),
        *(written(_KEY, header, payload, version=number) for number in (0, 2)),
        written(_KEY, header, payload, reserved=3),
    ]
    inputs = [_packed(flags, _KEY, value) for value in ours for flags in (0, _SEALED)]
    inputs += [_packed(_WRITTEN, _KEY, b"\0".join(_parts(value))) for value in ours]
    return [*inputs, *(_packed(0, _KEY, value) for value in others), _packed(_SEALED, b"", ours[0])]


def _tensor(dtype: str, shape: tuple[int, ...], random: Random) -> Array:
    kind = np.dtype(dtype)
    data = random.randbytes(kind.itemsize * int(np.prod(shape, dtype=np.int64)))
    return np.frombuffer(data, kind).reshape(shape)
