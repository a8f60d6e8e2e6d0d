"""The values of a large JSON file one after another, each found again by its place."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samserve.datasets.json_files import invalid_json, reject_constant
from samserve.errors import InvalidRequest

_DECODER = json.JSONDecoder(parse_constant=reject_constant)
_SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Found:
    """A value: of a key of the file's object, or, with its ``number``, an element of such a list.

    A list without elements is a value itself.  ``key`` is empty in a file that is a list, ``start``
    the place in the text.
    """

    key: str
    start: int
    value: Any
    number: int | None = None


class Text:
    """The text of a JSON file: the only part of it that stays in memory.

    Raises `InvalidRequest` for a file that is not UTF-8, and ``OSError``.
    """

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        try:
            self._text = path.read_text("utf-8-sig")
        except UnicodeDecodeError as error:
            raise invalid_json(self.place, error) from error

    def value(self, start: int) -> Any:
        """Return the value at a place.  Raises `InvalidRequest`."""
        return self._decode(start)[0]

    def walk(self) -> Iterator[Found]:
        """Yield the values of the file, those of lists element by element.

        Raises `InvalidRequest` for what is not JSON, or neither an object nor a list.
        """
        start = self._space(0)
        members = self._members if self._text.startswith("{", start) else self._list
        end = yield from members(start)
        if self._space(end) != len(self._text):
            raise self._error(end, "Expecting the end of the file")

    def _members(self, start: int) -> Generator[Found, None, int]:
        at = self._after("{", start)
        if self._text.startswith("}", at):
            return at + 1
        while True:
            key, at = self._decode(at)
            if not isinstance(key, str):
                raise self._error(at, "Expecting a key before this")
            at = self._after(":", self._space(at))
            at = self._space((yield from self._member(key, at)))
            if self._text.startswith("}", at):
                return at + 1
            at = self._after(",", at)

    def _member(self, key: str, at: int) -> Generator[Found, None, int]:
        if self._text.startswith("[", at):
            return (yield from self._list(at, key))
        value, end = self._decode(at)
        yield Found(key, at, value)
        return end

    def _list(self, start: int, key: str = "") -> Generator[Found, None, int]:
        at = self._after("[", start)
        if self._text.startswith("]", at):
            yield Found(key, start, [])
            return at + 1
        number = 0
        while True:
            value, end = self._decode(at)
            yield Found(key, at, value, number)
            number += 1
            at = self._space(end)
            if self._text.startswith("]", at):
                return at + 1
            at = self._after(",", at)

    def _decode(self, start: int) -> tuple[Any, int]:
        try:
            return _DECODER.raw_decode(self._text, start)
        except (ValueError, RecursionError) as error:
            raise invalid_json(self.place, error) from error

    def _space(self, at: int) -> int:
        found = _SPACE.match(self._text, at)
        return at if found is None else found.end()

    def _after(self, character: str, at: int) -> int:
        """Return the place after *character*, which must be at *at*, and the space behind it."""
        if not self._text.startswith(character, at):
            raise self._error(at, f"Expecting {character!r}")
        return self._space(at + 1)

    def _error(self, at: int, text: str) -> InvalidRequest:
        return invalid_json(self.place, json.JSONDecodeError(text, self._text, at))
