"""Mutations of protobuf messages by their fields, whatever the protocol declares."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzz import mutation

Pool = Callable[[str, Any, Random], Any]
"""Gives a value for a field of text or bytes: its name, its value now, and the numbers."""

_MOST_REPEATED = 80
_MOST_DEPTH = 6


def mutate(message: Message, random: Random, pool: Pool) -> None:
    """Change one field somewhere in a message."""
    for _ in range(_MOST_DEPTH):
        field: FieldDescriptor = cast(Any, random.choice(message.DESCRIPTOR.fields))
        if field.message_type is None or random.random() < 0.1:
            break
        below = _below(message, field, random)
        if below is None:
            break
        message = below
    else:
        return
    _change(message, field, random, pool)


def _below(message: Message, field: FieldDescriptor, random: Random) -> Message | None:
    """Choose a message below; None if there is none and none was made."""
    if not field.is_repeated:
        below: Message = getattr(message, field.name)
        below.SetInParent()
        return below
    values = getattr(message, field.name)
    if not values and random.random() < 0.5:
        return None
    chosen: Message = values[random.randrange(len(values))] if values else values.add()
    return chosen


def _change(message: Message, field: FieldDescriptor, random: Random, pool: Pool) -> None:
    if random.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated:
        _change_repeated(getattr(message, field.name), field, random, pool)
    elif field.message_type is not None:
        getattr(message, field.name).SetInParent()
    else:
        setattr(message, field.name, _value(field, getattr(message, field.name), random, pool))


def _change_repeated(values: Any, field: FieldDescriptor, random: Random, pool: Pool) -> None:
    kind = random.randrange(3)
    if kind == 0 and values:
        del values[random.randrange(len(values))]
    elif field.message_type is None:
        values.append(_value(field, field.default_value, random, pool))
    elif kind == 1 and values:
        copies = min(random.choice((1, 1, 2, 20)), _MOST_REPEATED - len(values))
        values.extend([values[random.randrange(len(values))]] * max(copies, 0))
    else:
        values.add()


def _value(field: FieldDescriptor, now: Any, random: Random, pool: Pool) -> Any:
    kind = field.cpp_type
    # Bytes, too.
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return pool(field.name, now, random)
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return mutation.double(random)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not now
    if field.enum_type is not None and random.random() < 0.7:
        return random.choice(field.enum_type.values).number
    number = mutation.integer(random)
    unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    return abs(number) if unsigned else number
