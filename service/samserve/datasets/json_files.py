"""JSON files: read with errors that name the place, written so that readers never see a part."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from samserve.datasets.files import atomic
from samserve.errors import InvalidRequest

__all__ = [
    "atomic",
    "dumps",
    "first_keys",
    "head",
    "invalid_json",
    "loads",
    "read",
    "reject_constant",
    "write",
]

_HEAD_BYTES = 1 << 16


def loads(data: bytes | str, place: str) -> Any:
    """Parse JSON in UTF-8.

    Raises `InvalidRequest`, which names *place*, for what is not JSON, for NaN and infinity, which
    JSON does not have, and for values that are nested too deeply.
    """
    try:
        text = data if isinstance(data, str) else data.decode("utf-8-sig")
        return json.loads(text, parse_constant=reject_constant)
    except (ValueError, RecursionError) as error:
        raise invalid_json(place, error) from error


def read(path: Path) -> Any:
    """Read a file.  Raises `InvalidRequest` as `loads` does, and ``OSError``."""
    return loads(path.read_bytes(), str(path))


def head(path: Path) -> str:
    """Return the first part of a file, without space before it; empty for a folder.

    Raises ``OSError``.
    """
    if path.is_dir():
        return ""
    with path.open("rb") as file:
        return file.read(_HEAD_BYTES).decode("utf-8-sig", "replace").lstrip()


def first_keys(path: Path) -> list[str]:
    """Return the keys of a file's object that begin in its first part; none for other files.

    Raises ``OSError``.
    """
    text = head(path)
    decoder = json.JSONDecoder()
    found: list[str] = []
    # Of the last value, only the beginning is there.
    with suppress(ValueError, RecursionError):
        at = len(text) - len(text.removeprefix("{").lstrip())
        while at and text.startswith('"', at):
            key, at = decoder.raw_decode(text, at)
            found.append(key)
            _, at = decoder.raw_decode(text, _after(text, ":", at))
            at = _after(text, ",", at)
    return found


def _after(text: str, character: str, at: int) -> int:
    """Return the place of what follows *character* and space."""
    rest = text[at:].lstrip()
    if not rest.startswith(character):
        raise ValueError(f"{character} is missing")
    return len(text) - len(rest[1:].lstrip())


def dumps(value: Any, place: str) -> bytes:
    """Return a value as one line of JSON in UTF-8.

    Bytes of file names that are not UTF-8 become escapes, ``\\udcXX``, which Python decodes to the
    same name.  Raises `InvalidRequest`, which names *place*, for what JSON cannot hold.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidRequest(place, f"cannot be written as JSON: {_one_line(error)}") from error
    return text.encode("utf-8", "backslashreplace")


def write(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically.  Raises as `dumps` does, and ``OSError``."""
    data = dumps(value, str(path))
    with atomic(path) as file:
        file.write(data + b"\n")


def invalid_json(place: str, error: Exception) -> InvalidRequest:
    """Return the error for a text that Python cannot parse."""
    if isinstance(error, RecursionError):
        return InvalidRequest(place, "is nested too deeply")
    if isinstance(error, UnicodeDecodeError):
        return InvalidRequest(place, f"is not UTF-8: byte {error.start} is not valid")
    return InvalidRequest(place, f"is not valid JSON: {_one_line(error)}")


def reject_constant(name: str) -> NoReturn:
    """Raise ``ValueError`` for NaN or infinity."""
    raise ValueError(f"{name} is not a number of JSON")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
