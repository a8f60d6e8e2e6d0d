"""What pydantic finds wrong, in the words of this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

_LONGEST = 80

# By text, pydantic's names of errors; the fields are those of their contexts.
_KINDS: Mapping[str, str] = {
    "is missing": "missing",
    "is not known": "extra_forbidden",
    "must be true or false": "bool_parsing bool_type",
    "must be a whole number": "int_parsing int_type int_from_float",
    "must be a whole number of fewer digits": "int_parsing_size",
    "must be a number": "float_parsing float_type",
    "must be finite": "finite_number",
    "must be greater than {gt}": "greater_than",
    "must be at least {ge}": "greater_than_equal",
    "must be less than {lt}": "less_than",
    "must be at most {le}": "less_than_equal",
    "must be {expected}": "literal_error enum",
    "must be text": "string_type",
    "must be UTF-8": "string_unicode",
    "must have at least {min_length} characters": "string_too_short",
    "must have at most {max_length} characters": "string_too_long",
    "must match {pattern}": "string_pattern_mismatch",
    "must be a path": "path_type",
    "must be a table of names and values": "model_type model_attributes_type dict_type",
    "must be a list": "list_type tuple_type set_type frozen_set_type",
    "must be a time, such as 2030-01-31T12:00:00Z": (
        "datetime_type datetime_parsing datetime_from_date_parsing datetime_object_invalid"
    ),
    "must have a time zone, such as Z at its end": "timezone_aware",
}
_TEXTS = {kind: text for text, kinds in _KINDS.items() for kind in kinds.split()}


def describe(problem: ErrorDetails, *, otherwise: str = "is not valid") -> str:
    """Return what is wrong with a value, without its place and without the value itself.

    *otherwise* is for what is wrong in ways that have no words here.  The words of `ValueError`s
    are our own validators', and may say both.
    """
    kind = problem["type"]
    context: dict[str, Any] = problem.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", "is not valid"))
    text = _TEXTS.get(kind)
    return otherwise if text is None else text.format_map(_Numbers(context))


def shown(value: object) -> str:
    """Quote a value for a message, at most some of it; empty for one that has no short form."""
    if not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


class _Numbers(dict[str, Any]):
    """Numbers as people write them."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        write: Callable[[float], str] = "{:.12g}".format
        return write(value) if isinstance(value, float) else value

    def __missing__(self, name: str) -> str:
        return name
