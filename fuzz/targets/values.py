"""`cache.shared.value_format`: values of embeddings in Redis or Valkey.

An input is one byte of flags, one byte with the length of the key, the key, and the value.  With a
flag, lengths and checksum are corrected, so that the code after their checks is reached; with
another, the value is built of a header and a payload, separated by a zero.
"""

from __future__ import annotations

import struct
from random import Random

import numpy as np
import xxhash
from samserve.cache.shared import value_format
from samserve.types import Array, EmbeddingFacts, Size

from fuzz.target import Rejected

_VALID_CHECKSUM, _BUILD = 1, 2
_PREFIX_BYTES = 40
_MAGIC_AND_FORMAT = b"samserve\2\0"
_KEY = b"samserve:{tenant}:embedding"
_FACTS = EmbeddingFacts(Size(6, 9), "fake", "d" * 64, "sam-1")
WORDS = (
    *(b"model_name", b"preprocessing", b"image_height", b"tensors", b"name", b"dtype", b"shape"),
    *(b"<f2", b"<f4", b"<f8", b"i1", b"u1", b"<i8", b"offset", b"nbytes", b"[]", b"{}", b"null"),
)


def run(data: bytes) -> None:
    """Parse a value."""
    flags, key, value = _parsed(data)
    if flags & _BUILD:
        header, _, payload = value.partition(b"\0")
        value = build_value(key, header, payload)
    elif flags & _VALID_CHECKSUM:
        value = with_valid_checksum(key, value)
    # Determined by magic and format alone; the other error is a finding.
    expected_error = (
        value_format.CorruptValue
        if value.startswith(_MAGIC_AND_FORMAT)
        else value_format.FormatMismatch
    )
    try:
        parsed = value_format.parse(key, value)
    except expected_error as error:
        raise Rejected(str(error)) from error
    assert value.startswith(_MAGIC_AND_FORMAT)
    _check(key, value, parsed)


def _check(key: bytes, value: bytes, parsed: value_format.Value) -> None:
    """Check that the parsed value encodes to the same bytes and is valid only under its key."""
    tensors = {spec.name: np.empty(spec.shape, spec.dtype) for spec in parsed.specs}
    assert sum(spec.nbytes for spec in parsed.specs) < len(value)
    parsed.copy_into(tensors)
    assert value_format.encode(key, parsed.facts, tensors) == value
    try:
        value_format.parse(key + b"'", value)
    except value_format.CorruptValue:
        return
    raise AssertionError("accepted under another key")


def with_valid_checksum(key: bytes, value: bytes) -> bytes:
    """Return the value with correct lengths and checksum."""
    if len(value) < _PREFIX_BYTES:
        return value
    rest = value[_PREFIX_BYTES:]
    header_bytes = min(int.from_bytes(value[12:16], "little"), len(rest))
    checked = value[:12] + struct.pack("<IQ", header_bytes, len(rest) - header_bytes)
    sum_of = struct.pack("<Q", len(key)) + key + checked + rest
    return checked + xxhash.xxh3_128_digest(sum_of) + rest


def build_value(
    key: bytes,
    header: bytes,
    payload: bytes,
    *,
    version: int = value_format.FORMAT,
    reserved: int = 0,
) -> bytes:
    """Return a value of any content with correct lengths and checksum."""
    prefix = struct.pack("<8sHHIQ16x", b"samserve", version, reserved, len(header), len(payload))
    return with_valid_checksum(key, prefix + header + payload)


def _parts(value: bytes) -> tuple[bytes, bytes]:
    """Return header and payload; either may be empty."""
    end = _PREFIX_BYTES + int.from_bytes(value[12:16], "little")
    return value[_PREFIX_BYTES:end], value[end:]


def _parsed(data: bytes) -> tuple[int, bytes, bytes]:
    flags, length = data[:2].ljust(2, b"\0")
    return flags, data[2 : 2 + length], data[2 + length :]


def _input(flags: int, key: bytes, value: bytes) -> bytes:
    key = key[:255]
    return bytes([flags, len(key)]) + key + value


def seeds() -> list[bytes]:
    """Return embeddings like those of SAM 1 and SAM 2, and values of other programs."""
    random = Random(0)
    valid = [
        value_format.encode(_KEY, _FACTS, tensors)
        for tensors in (
            {"image_embedding": np.zeros((4, 8, 8), "<f2")},
            {"image_embed": _tensor("<f4", (2, 3, 5), random), "number": _tensor("u1", (), random)},
            {f"high_res_{index}": _tensor("<f2", (9, 2**index), random) for index in range(3)},
            {"é\n\U0001f600": _tensor("<i8", (1,) * 8, random)},
        )
    ]
    header, payload = _parts(valid[1])
    others = [
        *(
            b"",
            b"samserve",
            b"42",
            b"\x80\x04}\x94.",
            _MAGIC_AND_FORMAT,
            build_value(_KEY, b"", b""),
        ),
        *(build_value(_KEY, header, payload, version=number) for number in (0, 2)),
        build_value(_KEY, header, payload, reserved=3),
    ]
    inputs = [_input(flags, _KEY, value) for value in valid for flags in (0, _VALID_CHECKSUM)]
    inputs += [_input(_BUILD, _KEY, b"\0".join(_parts(value))) for value in valid]
    return [
        *inputs,
        *(_input(0, _KEY, value) for value in others),
        _input(_VALID_CHECKSUM, b"", valid[0]),
    ]


def _tensor(dtype: str, shape: tuple[int, ...], random: Random) -> Array:
    kind = np.dtype(dtype)
    data = random.randbytes(kind.itemsize * int(np.prod(shape, dtype=np.int64)))
    return np.frombuffer(data, kind).reshape(shape)
