"""Bytes to requests, with a bound on what they become.

A field of two bytes becomes a message of fifty, so a request within its limit of bytes could take
some thirty times as much memory.  Fields are counted before anything is made of them.
"""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from samserve.errors import InvalidRequest
from samserve.settings import LimitSettings

M = TypeVar("M", bound=Message)

# What is smaller cannot become large.
_SMALL_BYTES = 1 << 16

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)


def max_fields(limits: LimitSettings) -> int:
    """How many fields a request within the limits has at most, with room to spare."""
    grids = (limits.crop_n_layers + 1) * limits.points_per_side**2 * 3
    prompts = limits.prompts * (limits.points + 4) * 4
    return (grids + prompts) * 2


def parse(kind: type[M], data: bytes, most: int) -> M:
    """Read a message.  Raises `InvalidRequest` if it is none, or has more than *most* fields."""
    try:
        if len(data) > _SMALL_BYTES:
            _check_fields(kind, data, most)
        return kind.FromString(data)
    except (DecodeError, IndexError) as error:
        raise InvalidRequest("request", f"is no {kind.__name__}") from error


def _check_fields(kind: type[Message], data: bytes, most: int) -> None:
    if count_fields(kind.DESCRIPTOR, memoryview(data), most) < 0:
        text = f"has more than {most} fields"
        raise InvalidRequest("request", text, metadata={"limit": str(most)})


def count_fields(descriptor: Any, data: memoryview, left: int) -> int:
    """Count fields down from *left*, in messages inside messages too, and give what is left.

    Stops when that is less than nothing.  Raises `DecodeError` or `IndexError`, and only for bytes
    that are no message.
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
            # Nothing inside a group is known: this protocol has none.
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
            raise DecodeError("a wire type that there is not")
    return left


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Read a number of 7 bits a byte, lowest first: it, and where the next field begins."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise DecodeError("a number of more than 64 bits")


def _message_type(descriptor: Any, number: int) -> Any:
    field = descriptor.fields_by_number.get(number)
    if field is None or field.type != FieldDescriptor.TYPE_MESSAGE:
        return None
    return field.message_type
