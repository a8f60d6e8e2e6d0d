"""Parsing of requests, with a limit on the memory of the parsed message.

A field of two bytes is parsed into a message of fifty, so a request within its limit of bytes could
need about thirty times as much memory.  Fields are counted before the request is parsed.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from samserve.errors import InvalidRequest
from samserve.scheduling.offload import MAX_COPIED_BYTES, is_quick
from samserve.settings import LimitSettings

M = TypeVar("M", bound=Message)

# Smaller requests cannot become large.
_SMALL_BYTES = 1 << 16
_FEW_FIELDS = 64

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


def max_fields(limits: LimitSettings) -> int:
    """Return an upper bound on the number of fields of a request within the limits."""
    grids = (limits.max_crop_n_layers + 1) * limits.max_points_per_side**2 * 3
    prompts = limits.max_prompts * (limits.max_points + 4) * 4
    excluded = limits.max_exclude_masks * 5
    return (grids + prompts + excluded) * 2


def is_quick_to_parse(kind: type[Message], data: bytes) -> bool:
    """Return whether parsing takes a fraction of a millisecond: an image is only copied."""
    if is_quick(nbytes=len(data)):
        return True
    if len(data) > MAX_COPIED_BYTES:
        return False
    try:
        return count_fields(kind.DESCRIPTOR, memoryview(data), _FEW_FIELDS) >= 0
    except (DecodeError, IndexError):
        return True  # `parse` fails at the same place


def parse(kind: type[M], data: bytes, limit: int) -> M:
    """Parse a message.  Raises `InvalidRequest` if it is invalid or has over *limit* fields."""
    try:
        if len(data) > _SMALL_BYTES:
            _check_fields(kind, data, limit)
        return kind.FromString(data)
    except (DecodeError, IndexError) as error:
        raise InvalidRequest("request", f"is not a valid {kind.__name__}") from error


def _check_fields(kind: type[Message], data: bytes, limit: int) -> None:
    if count_fields(kind.DESCRIPTOR, memoryview(data), limit) < 0:
        text = f"has more than {limit} fields"
        raise InvalidRequest("request", text, metadata={"limit": str(limit)})


def count_fields(descriptor: Any, data: memoryview, left: int) -> int:
    """Subtract the number of fields, nested messages included, from *left* and return the rest.

    Stops below zero.  Raises `DecodeError` or `IndexError`, and only for bytes that are not a valid
    message.
    """
    at = depth = 0
    while at < len(data):
        left -= 1
        if left < 0:
            break
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            length, at = _varint(data, at)
            # Fields inside a group are unknown: this protocol has no groups.
            inner = None if depth else _message_type(descriptor, tag >> 3)
            if inner is not None:
                left = count_fields(inner, data[at : at + length], left)
            at += length
        elif wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            at += 8 if wire == _FIXED64 else 4
        elif wire in (_GROUP, _END_GROUP):
            depth += 1 if wire == _GROUP else -1
        else:
            raise DecodeError("unknown wire type")
    return left


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of 7 bits per byte, lowest first; return it and the offset after it."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DecodeError("varint of more than 64 bits")


def _message_type(descriptor: Any, number: int) -> Any:
    field = descriptor.fields_by_number.get(number)
    if field is None or field.type != FieldDescriptor.TYPE_MESSAGE:
        return None
    return field.message_type
