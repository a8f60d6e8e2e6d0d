"""Error texts of this package for validation errors of pydantic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pydantic_core import ErrorDetails

_MAX_SHOWN = 80

# By error text, the error types of pydantic; the fields in braces are those of their contexts.
_KINDS: Mapping[str, str] = {
    "is missing": "missing",
    "is unknown": "extra_forbidden",
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
    """Return the error text for a value, without its location and without the value.

    *otherwise* is the text for types of errors that are not listed here.  Texts of `ValueError`s
    come from the validators of this package, and may contain both.
    """
    kind = problem["type"]
    context: dict[str, Any] = problem.get("ctx", {})
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", "is not valid"))
    text = _TEXTS.get(kind)
    return otherwise if text is None else text.format_map(_Numbers(context))


def short_repr(value: object) -> str:
    """Return a value for an error text, truncated; empty for one without a short form."""
    if not isinstance(value, str | int | float):
        return ""
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}..."


class _Numbers(dict[str, Any]):
    """Format floats without trailing digits."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        write: Callable[[float], str] = "{:.12g}".format
        return write(value) if isinstance(value, float) else value

    def __missing__(self, name: str) -> str:
        return name
