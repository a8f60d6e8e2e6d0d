"""The layout of safetensors files: named tensors, and text about them.

The format is that of ``README.md`` of github.com/huggingface/safetensors::

    at    bytes  content
    0     8      h, bytes of the header, little-endian
    8     h      header: JSON in UTF-8 that begins with ``{``; spaces may follow it
    8+h   ...    payload: the tensors, little-endian, rows first, without gaps

The header maps the name of each tensor to its ``dtype``, ``shape`` and ``data_offsets`` (first byte
and end, from the start of the payload), and ``__metadata__`` to texts by name.

The package of that name serializes a whole file at once.  Here a file is sent while its tensors
stay where they are, and its header is checked before its payload has arrived.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from samserve.types import TensorSpec

LENGTH_BYTES = 8
MAX_HEADER_BYTES = 64 << 10

_MAX_TENSORS = _MAX_TEXTS = 64
_MAX_DIMENSIONS = 8
_MAX_LENGTH = 2**31 - 1
_ALIGNMENT = 8
_METADATA = "__metadata__"
_FIELDS = {"dtype", "shape", "data_offsets"}
_DTYPES: dict[str, np.dtype[Any]] = {
    name: np.dtype(code) for name, code in (("F16", "<f2"), ("F32", "<f4"), ("F64", "<f8"))
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


class MalformedFile(ValueError):
    """The bytes are not a file of this format; the text says what is wrong."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, and where in the payload it is: the first byte and the end."""

    spec: TensorSpec
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Layout:
    """The content of a header; tensors are in the order of the payload."""

    metadata: Mapping[str, str]
    tensors: tuple[StoredTensor, ...]

    @property
    def payload_bytes(self) -> int:
        """Bytes of all tensors."""
        return self.tensors[-1].end


def write_header(metadata: Mapping[str, str], tensors: Mapping[str, np.ndarray]) -> bytes:
    """Return length and header of a file of *tensors*, whose bytes follow in their order.

    The header is filled with spaces to a multiple of 8 bytes.  Raises `ValueError` for tensors of
    other types than float16, float32 and float64.
    """
    document: dict[str, Any] = {_METADATA: dict(metadata)}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPE_NAMES:
            raise ValueError(f"{name}: tensors of type {tensor.dtype} are not supported")
        start, end = end, end + tensor.nbytes
        document[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": (start, end),
        }
    header = json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    header += b" " * (-len(header) % _ALIGNMENT)
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


def header_bytes(length: bytes) -> int:
    """Return the bytes of the header, from the first 8 bytes of a file.  Raises `MalformedFile`."""
    nbytes = int.from_bytes(length, "little")
    # The shortest object is {}.
    if not 2 <= nbytes <= MAX_HEADER_BYTES:
        raise MalformedFile(f"its header must have from 2 to {MAX_HEADER_BYTES} bytes")
    return nbytes


def read_header(header: bytes) -> Layout:
    """Parse a header of at most `MAX_HEADER_BYTES`.  Raises `MalformedFile`.

    The tensors fill the payload without gaps and do not overlap, and each has the size of its type
    and shape.  All texts can be encoded in UTF-8.
    """
    document = _parse(header)
    metadata = _read_metadata(document.pop(_METADATA, {}))
    if not 1 <= len(document) <= _MAX_TENSORS:
        raise MalformedFile(f"it must have from 1 to {_MAX_TENSORS} tensors")
    tensors = [_read_tensor(name, entry) for name, entry in document.items()]
    tensors.sort(key=lambda tensor: tensor.start)
    end = 0
    for tensor in tensors:
        if tensor.start != end:
            raise MalformedFile("its tensors overlap, or do not fill the payload")
        end = tensor.end
    return Layout(metadata, tuple(tensors))


def _parse(header: bytes) -> dict[str, Any]:
    if not header.startswith(b"{"):
        raise MalformedFile("its header does not begin with {")
    try:
        document = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
        # An escape may be half of a character, which no text of an error could contain.
        json.dumps(document, ensure_ascii=False).encode("utf-8")
    except MalformedFile:
        raise
    except (ValueError, RecursionError) as error:
        raise MalformedFile("its header is not JSON in UTF-8") from error
    if not isinstance(document, dict):
        raise MalformedFile("its header is not an object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build an object of JSON; readers differ in which of two equal names they use."""
    built = dict(pairs)
    if len(built) < len(pairs):
        raise MalformedFile("its header contains a name twice")
    return built


def _read_metadata(entry: Any) -> dict[str, str]:
    if not isinstance(entry, dict) or len(entry) > _MAX_TEXTS:
        raise MalformedFile(f"its {_METADATA} must have at most {_MAX_TEXTS} texts by name")
    if not all(isinstance(value, str) for value in entry.values()):
        raise MalformedFile(f"its {_METADATA} contains a value that is not a text")
    return entry


def _read_tensor(name: str, entry: Any) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        raise MalformedFile(f"each of its tensors must have {', '.join(sorted(_FIELDS))}")
    dtype = entry["dtype"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise MalformedFile(f"the types of its tensors must be among {', '.join(_DTYPES)}")
    shape = _read_numbers(entry["shape"], low=1)
    offsets = _read_numbers(entry["data_offsets"], low=0)
    spec = TensorSpec(name, _DTYPES[dtype], shape)
    # Not `TensorSpec.nbytes`, whose 64 bits an untrusted shape can overflow.
    nbytes = spec.dtype.itemsize * math.prod(shape)
    if len(offsets) != 2 or offsets[1] - offsets[0] != nbytes:
        raise MalformedFile("the offsets of a tensor do not match its type and shape")
    return StoredTensor(spec, *offsets)


def _read_numbers(entry: Any, low: int) -> tuple[int, ...]:
    # A bool is an int, too.
    if not (
        isinstance(entry, list)
        and len(entry) <= _MAX_DIMENSIONS
        and all(type(number) is int and low <= number <= _MAX_LENGTH for number in entry)
    ):
        raise MalformedFile("its shapes and offsets must be lists of whole numbers")
    return tuple(entry)
