"""The chart's README: the table of values, from the comments in values.yaml."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MARK = "{{ values }}"
_COMMENT = re.compile(r"^( *)# (-- )?(.*)$")
_KEY = re.compile(r"^( *)([A-Za-z0-9_]+):")


class Value(NamedTuple):
    """A value that can be set."""

    path: str
    default: Any
    what: str


def readme(text: str, values_text: str, defaults: dict[str, Any]) -> str:
    """Put the table of values into *text*."""
    return text.replace(MARK, table(documented(values_text, defaults)))


def table(values: list[Value]) -> str:
    """Return the values as a table of Markdown."""
    rows = [f"| `{each.path}` | `{json.dumps(each.default)}` | {each.what} |" for each in values]
    return "\n".join(["| Value | Default | What |", "|---|---|---|", *rows])


def documented(values_text: str, defaults: dict[str, Any]) -> list[Value]:
    """Read what comments say of values.

    Raises `ValueError` if a value that has no values below it has no comment either.
    """
    found: list[Value] = []
    path: list[tuple[int, str]] = []
    what: list[str] = []
    for line in values_text.splitlines():
        if comment := _COMMENT.match(line):
            what = [comment[3]] if comment[2] else [*what, comment[3]] if what else []
            continue
        if key := _KEY.match(line):
            depth = len(key[1])
            path = [each for each in path if each[0] < depth] + [(depth, key[2])]
            names = [name for _, name in path]
            if what:
                found.append(Value(".".join(names), _at(defaults, names), " ".join(what)))
        what = []
    _check(found, defaults)
    return found


def _at(values: Any, names: list[str]) -> Any:
    for name in names:
        values = values[name]
    return values


def _check(found: list[Value], defaults: dict[str, Any]) -> None:
    paths = {value.path for value in found}
    silent = [path for path in _leaves(defaults, "") if not _said(path, paths)]
    if silent:
        raise ValueError(f"values without a comment: {', '.join(silent)}")


def _said(path: str, paths: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in paths for count in range(1, len(parts) + 1))


def _leaves(values: Any, path: str) -> list[str]:
    if isinstance(values, dict) and values:
        return [leaf for name, each in values.items() for leaf in _leaves(each, f"{path}.{name}")]
    return [path.removeprefix(".")]
