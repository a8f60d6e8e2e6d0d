"""Checks of the values in the JSON of tools; errors name the field, as a path."""

from __future__ import annotations

import math
from typing import Any

from samserve.errors import InvalidRequest


def number(value: object, field: str) -> float:
    """Return a finite number.  Raises `InvalidRequest`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidRequest(field, "must be a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise InvalidRequest(field, "must be finite")
    return found


def text(value: object, field: str) -> str:
    """Return a text.  Raises `InvalidRequest`."""
    if not isinstance(value, str):
        raise InvalidRequest(field, "must be text")
    return value


def items(value: object, field: str) -> list[Any]:
    """Return a list; an empty one for None.  Raises `InvalidRequest`."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidRequest(field, "must be a list")
    return value


def table(value: object, field: str) -> dict[str, Any]:
    """Return an object; an empty one for None.  Raises `InvalidRequest`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidRequest(field, "must be an object")
    return value
