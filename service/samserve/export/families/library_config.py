"""Reading configurations of the transformers library, which are untrusted input.

Every value has a range, so that no network of an absurd size is built.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Mapping
from typing import NoReturn, TypeGuard

from samserve.export.errors import ExportError
from samserve.export.sources.files import shown


class Fields:
    """A part of a configuration.  All methods raise `ExportError` for a value that is unsupported.

    A field that is missing or null has its default.
    """

    def __init__(self, content: object, path: str = "") -> None:
        self._path = path
        if content is not None and not isinstance(content, Mapping):
            raise ExportError(f"config.json: {path} is not an object")
        self._content: Mapping[str, object] = content or {}

    def part(self, key: str) -> Fields:
        """Return a nested part; it is empty if it is missing."""
        return Fields(self._content.get(key), f"{self._path}{key}.")

    def integer(self, key: str, default: int, low: int, high: int) -> int:
        """Return a whole number from *low* to *high*."""
        value = self._get(key, default)
        if not _is_integer(value) or not low <= value <= high:
            self._fail(key, value, f"a whole number from {low} to {high}")
        return value

    def integers(self, key: str, default: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
        """Return a list of as many whole numbers as the *default* has."""
        values = self._get(key, default)
        if (
            not isinstance(values, list | tuple)
            or len(values) != len(default)
            or not all(_is_integer(each) and low <= each <= high for each in values)
        ):
            self._fail(key, values, f"{len(default)} whole numbers from {low} to {high}")
        return tuple(values)

    def square(self, key: str, default: int, low: int, high: int) -> int:
        """Return the side of a square: one number, or a list with the same number twice."""
        value = self._get(key, default)
        side = value
        if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
            side = value[0]
        if not _is_integer(side) or not low <= side <= high:
            self._fail(key, value, f"the side of a square, from {low} to {high}")
        return side

    def number(self, key: str, default: float, low: float, high: float) -> float:
        """Return a number from *low* to *high*."""
        value = self._get(key, default)
        # Comparisons with NaN are false.
        if not (isinstance(value, float) or _is_integer(value)) or not low <= value <= high:
            self._fail(key, value, f"a number from {low:g} to {high:g}")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            self._fail(key, value, "true or false")
        return value

    def increasing(self, key: str, default: tuple[int, ...], high: int) -> tuple[int, ...]:
        """Return a list of any number of increasing whole numbers from 0 to *high*."""
        values = self._get(key, default)
        if (
            not isinstance(values, list | tuple)
            or not all(_is_integer(each) and 0 <= each <= high for each in values)
            or any(after <= before for before, after in itertools.pairwise(values))
        ):
            self._fail(key, values, f"increasing whole numbers from 0 to {high}")
        return tuple(values)

    def one_of(self, key: str, supported: tuple[str, ...]) -> str:
        """Return a text that is one of *supported*, by default the first."""
        value = self._get(key, supported[0])
        if not isinstance(value, str) or value not in supported:
            self._fail(key, value, " or ".join(supported))
        return value

    def fixed(self, **expected: object) -> None:
        """Check that every field has the only value that is supported."""
        for key, value in expected.items():
            found = self._get(key, value)
            if found != value:
                self._fail(key, found, f"{value!r}, the only one that is supported")

    def _get(self, key: str, default: object) -> object:
        value = self._content.get(key)
        return default if value is None else value

    def _fail(self, key: str, value: object, expected: str) -> NoReturn:
        # Untrusted values may be long or deeply nested.
        found = shown(reprlib.repr(value))
        raise ExportError(f"config.json: {self._path}{key} is {found}, not {expected}")


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
