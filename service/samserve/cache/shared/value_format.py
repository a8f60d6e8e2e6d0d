"""The format of an embedding as a value in Redis or Valkey, with a checksum.

Format 2; numbers are little-endian::

    at    bytes  content
    0     8      b"samserve"
    8     2      format
    10    2      zeros
    12    4      h, bytes of the header
    16    8      p, bytes of the payload
    24    16     XXH3-128 in its canonical, big-endian form
    40    h      header: JSON in UTF-8, names sorted, no spaces
    40+h  p      payload

The payload is the tensors, in the order of the header, each at the next multiple of 64 bytes, with
zeros between them and nothing after the last.

The checksum covers the length of the Redis key in 8 bytes, the key, the bytes 0 to 24, the header
and the payload; a value copied to another key is rejected.  It detects accidental corruption, not
forgery: a client with write access to the server can write any value.

The magic and the format are checked before the checksum, since another version may lay out
everything after them differently.  So a flipped bit there results in `FormatMismatch`, and the
value is not used either.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
import xxhash
from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
)

from samserve.types import Array, EmbeddingFacts, Size, TensorSpec

FORMAT = 2
"""Incremented by every change of the layout or of the header, also by a new field."""
MAX_HEADER_BYTES = 64 << 10

_MAGIC = b"samserve"
_MARK = _MAGIC + struct.pack("<H", FORMAT)
_PREFIX = struct.Struct("<8sHHIQ16s")
_CHECKED = struct.Struct("<8sHHIQ")  # the prefix without its checksum
_ALIGNMENT = 64

_DType = Literal["f2", "f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8"]
_DTYPES: dict[str, np.dtype[Any]] = {name: np.dtype(f"<{name}") for name in get_args(_DType)}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class UnusableValue(Exception):
    """The bytes are not an embedding that this version can use."""


class CorruptValue(UnusableValue):
    """The value is marked with this format, but it is not what was written under this key."""


class FormatMismatch(UnusableValue):
    """The value is of another version or program; it is neither used nor deleted."""


_Text = Annotated[str, StringConstraints(max_length=512)]
_Name = Annotated[str, StringConstraints(min_length=1, max_length=128)]
_Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
_Bytes = Annotated[int, Field(ge=0, le=2**63 - 1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)


class _Tensor(_Strict):
    """One tensor; without dimensions it is a single number.  Offset and size are in bytes."""

    name: _Name
    dtype: _DType
    shape: Annotated[tuple[_Length, ...], Field(max_length=8), FailFast()]
    offset: _Bytes
    nbytes: _Bytes


class _Header(_Strict):
    """The fields of the header; sizes in pixels; ``model_digest`` is that of the encoder."""

    model_name: _Text
    model_digest: _Text
    preprocessing: _Text
    image_height: _Length
    image_width: _Length
    tensors: Annotated[tuple[_Tensor, ...], Field(min_length=1, max_length=64), FailFast()]

    @field_validator("tensors")
    @classmethod
    def _names_differ(cls, tensors: tuple[_Tensor, ...]) -> tuple[_Tensor, ...]:
        if len({tensor.name for tensor in tensors}) < len(tensors):
            raise ValueError("two tensors have the same name")
        return tensors

    @property
    def facts(self) -> EmbeddingFacts:
        size = Size(self.image_height, self.image_width)
        return EmbeddingFacts(size, self.model_name, self.model_digest, self.preprocessing)

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(tensor.name, _DTYPES[tensor.dtype], tensor.shape) for tensor in self.tensors
        )


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """A verified embedding; refers to the bytes that it was parsed from."""

    facts: EmbeddingFacts
    specs: tuple[TensorSpec, ...]
    _payload: memoryview = field(repr=False)

    def copy_into(self, tensors: Mapping[str, Array]) -> None:
        """Copy every tensor into the writable array of the same name.

        Raises `ValueError`, and copies nothing, if names, types or shapes differ from ``specs``.
        """
        if tensors.keys() != {spec.name for spec in self.specs}:
            raise ValueError(f"the arrays are {sorted(tensors)}, not those of the value")
        for spec in self.specs:
            array = tensors[spec.name]
            if (array.dtype, array.shape) != (spec.dtype, spec.shape) or not array.flags.writeable:
                raise ValueError(f"{spec.name}: not a writable {spec.dtype} of shape {spec.shape}")
        for spec, start, end in _layout(self.specs):
            stored = np.frombuffer(self._payload[start:end], spec.dtype).reshape(spec.shape)
            np.copyto(tensors[spec.name], stored)


def encode(key: bytes, facts: EmbeddingFacts, tensors: Mapping[str, Array]) -> bytearray:
    """Serialize an embedding for *key*: C-contiguous tensors, in their order; they are copied once.

    They must not change meanwhile, or the value is corrupt.  Other threads run while they are
    copied and hashed.  Raises `ValueError` for anything that the format does not support: no
    tensors or more than 64, more than 8 dimensions, empty tensors, types other than little-endian
    integers and floats, long names.
    """
    header = _write_header(facts, tuple(_spec(name, array) for name, array in tensors.items()))
    layout = list(_layout(_read_header(header).specs))
    payload_start = _PREFIX.size + len(header)
    # Zeros, also between the tensors.  NumPy releases the GIL while it copies, `bytes.join` not.
    value = bytearray(payload_start + layout[-1][2])
    payload = np.frombuffer(value, np.uint8)[payload_start:]
    for spec, start, end in layout:
        np.copyto(payload[start:end], tensors[spec.name].reshape(-1).view(np.uint8))
    _CHECKED.pack_into(value, 0, _MAGIC, FORMAT, 0, len(header), len(payload))
    value[_PREFIX.size : payload_start] = header
    digest = _checksum(key, value[: _CHECKED.size], memoryview(value)[_PREFIX.size :])
    value[_CHECKED.size : _PREFIX.size] = digest
    return value


def checksum(value: bytes | bytearray) -> bytes:
    """Return the 16 bytes of a value's checksum, without verifying it."""
    return bytes(value[_CHECKED.size : _PREFIX.size])


def total_bytes(start: bytes) -> int | None:
    """Return the bytes of the value that begins with *start*, None if that is not in this format.

    Nothing is verified: *start* may be corrupt.
    """
    if len(start) < _PREFIX.size or not start.startswith(_MARK):
        return None
    _, _, _, header_bytes, payload_bytes, _ = _PREFIX.unpack_from(start)
    return int(_PREFIX.size + header_bytes + payload_bytes)


def parse(key: bytes, value: bytes | bytearray) -> Value:
    """Parse the embedding of *key*, without copying the tensors.

    Raises `FormatMismatch` if magic or format differ, whatever follows them, and `CorruptValue` for
    an invalid value.  The value is untrusted: rejecting a header, of at most 64 KiB, takes up to
    about 10 MB and 10 ms.
    """
    if not value.startswith(_MARK):
        raise FormatMismatch(f"not a value of samserve in format {FORMAT}")
    header, payload = _verified(key, value)
    try:
        parsed = _read_header(header)
    except ValidationError as error:
        raise CorruptValue("the header is malformed") from error
    facts, specs = parsed.facts, parsed.specs
    # A header has only one serialization: this also checks offsets and lengths, and finds duplicate
    # fields, of which pydantic reads only the last.
    if _write_header(facts, specs) != header:
        raise CorruptValue("the header is not in canonical form")
    _check_payload(specs, payload)
    return Value(facts, specs, payload)


def _verified(key: bytes, value: bytes | bytearray) -> tuple[bytes, memoryview]:
    """Return header and payload if the prefix and the checksum are valid."""
    if len(value) < _PREFIX.size:
        raise CorruptValue("shorter than the prefix")
    _, _, reserved, header_bytes, payload_bytes, expected = _PREFIX.unpack_from(value)
    if reserved:
        raise CorruptValue("the reserved bytes are not zero")
    start = _PREFIX.size + header_bytes
    if header_bytes > MAX_HEADER_BYTES or start + payload_bytes != len(value):
        raise CorruptValue("the length differs from that in the prefix")
    content = memoryview(value)
    if _checksum(key, value[: _CHECKED.size], content[_PREFIX.size :]) != expected:
        raise CorruptValue("the checksum is wrong")
    return bytes(value[_PREFIX.size : start]), content[start:]


def _check_payload(specs: tuple[TensorSpec, ...], payload: memoryview) -> None:
    end = 0
    for _, start, next_end in _layout(specs):
        # A shape may claim any size; a slice ends where the payload does.
        if any(payload[end:start]):
            raise CorruptValue("the padding between the tensors is not zero")
        end = next_end
    if end != len(payload):
        raise CorruptValue("the size of the payload differs from that of the tensors")


def _checksum(key: bytes, checked: bytes | bytearray, rest: memoryview) -> bytes:
    state = xxhash.xxh3_128(len(key).to_bytes(8, "little") + key + checked)
    state.update(rest)
    return state.digest()


def _spec(name: str, array: Array) -> TensorSpec:
    if array.dtype not in _DTYPE_NAMES:
        raise ValueError(f"{name}: tensors of type {array.dtype} are not supported")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name}: not C-contiguous")
    return TensorSpec(name, array.dtype, array.shape)


def _write_header(facts: EmbeddingFacts, specs: tuple[TensorSpec, ...]) -> bytes:
    """Serialize the header of these facts and specs, even if `_read_header` rejects it."""
    tensors = [
        {
            "name": spec.name,
            "dtype": _DTYPE_NAMES[spec.dtype],
            "shape": spec.shape,
            "offset": start,
            "nbytes": end - start,
        }
        for spec, start, end in _layout(specs)
    ]
    document = {
        "model_name": facts.model_name,
        "model_digest": facts.encoder_digest,
        "preprocessing": facts.preprocessing,
        "image_height": facts.image_size.height,
        "image_width": facts.image_size.width,
        "tensors": tensors,
    }
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")


def _read_header(header: bytes) -> _Header:
    """Parse a header.  Raises `ValueError` if it is too long, pydantic's error if it is invalid."""
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"the header has {len(header)} bytes, more than {MAX_HEADER_BYTES}")
    return _Header.model_validate_json(header)


def _layout(specs: tuple[TensorSpec, ...]) -> Iterator[tuple[TensorSpec, int, int]]:
    """Yield each spec with the start and end offset of its tensor in the payload."""
    end = 0
    for spec in specs:
        start = -(-end // _ALIGNMENT) * _ALIGNMENT
        # Not `TensorSpec.nbytes`, whose 64 bits an untrusted shape can overflow.
        end = start + spec.dtype.itemsize * math.prod(spec.shape)
        yield spec, start, end
