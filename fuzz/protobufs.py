"""Mutations of the fields of any protobuf message."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any, cast

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from fuzz import mutation

_MAX_REPEATED = 80


def mutate(message: Message, random: Random, contents: Sequence[bytes]) -> None:
    """Change one field somewhere in a message; text and bytes become one of *contents*."""
    field: FieldDescriptor = cast(Any, random.choice(message.DESCRIPTOR.fields))
    value: Any = getattr(message, field.name)
    if random.random() < 0.1:
        message.ClearField(field.name)
    elif field.is_repeated and random.random() < 0.3 and len(value):
        value.extend(
            [random.choice(value)] * (random.choice((1, 20)) % (_MAX_REPEATED - len(value)))
        )
    elif field.message_type is None:
        scalar = _scalar(field, value, random, contents)
        value.append(scalar) if field.is_repeated else setattr(message, field.name, scalar)
    elif not field.is_repeated:
        value.SetInParent()
        mutate(value, random, contents)
    else:
        mutate(random.choice(value) if len(value) else value.add(), random, contents)


def _scalar(field: FieldDescriptor, current: Any, random: Random, contents: Sequence[bytes]) -> Any:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_STRING:  # bytes too
        content = random.choice(contents)
        return content if field.type == FieldDescriptor.TYPE_BYTES else content.decode("latin-1")
    if kind in (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT):
        return random.choice((*mutation.DOUBLES, random.uniform(-2, 30), random.random()))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return not current
    number = random.choice((*mutation.INTS, random.randrange(5), random.randrange(40)))
    unsigned = kind in (FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_UINT64)
    return abs(number) if unsigned else number
