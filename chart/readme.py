"""Generates the chart's README: its table of values, from the comments in values.yaml."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

MARK = "{{ values }}"
_COMMENT = re.compile(r"^( *)# (-- )?(.*)$")
_KEY = re.compile(r"^( *)([A-Za-z0-9_]+):")


class Value(NamedTuple):
    """A value of the chart that has a description."""

    path: str
    default: Any
    description: str


def readme(text: str, values_text: str, defaults: dict[str, Any]) -> str:
    """Return *text* with the table of values in place of `MARK`."""
    return text.replace(MARK, table(documented_values(values_text, defaults)))


def table(values: list[Value]) -> str:
    """Return the values as a Markdown table."""
    rows = [
        f"| `{each.path}` | `{json.dumps(each.default)}` | {each.description} |" for each in values
    ]
    return "\n".join(["| Value | Default | Description |", "|---|---|---|", *rows])


def documented_values(values_text: str, defaults: dict[str, Any]) -> list[Value]:
    """Return the values that have a comment, in the order of the file.

    Raises `ValueError` if neither a value nor any of its parents has a comment.
    """
    found: list[Value] = []
    path: list[tuple[int, str]] = []
    description: list[str] = []
    for line in values_text.splitlines():
        if comment := _COMMENT.match(line):
            if comment[2]:
                description = [comment[3]]
            elif description:
                description = [*description, comment[3]]
            continue
        if key := _KEY.match(line):
            depth = len(key[1])
            path = [each for each in path if each[0] < depth] + [(depth, key[2])]
            names = [name for _, name in path]
            if description:
                found.append(
                    Value(".".join(names), _lookup(defaults, names), " ".join(description))
                )
        description = []
    _check_complete(found, defaults)
    return found


def _lookup(values: Any, names: list[str]) -> Any:
    for name in names:
        values = values[name]
    return values


def _check_complete(found: list[Value], defaults: dict[str, Any]) -> None:
    paths = {value.path for value in found}
    missing = [path for path in _leaves(defaults, "") if not _is_documented(path, paths)]
    if missing:
        raise ValueError(f"values without a comment: {', '.join(missing)}")


def _is_documented(path: str, documented: set[str]) -> bool:
    parts = path.split(".")
    return any(".".join(parts[:count]) in documented for count in range(1, len(parts) + 1))


def _leaves(values: Any, path: str) -> list[str]:
    if isinstance(values, dict) and values:
        return [leaf for name, each in values.items() for leaf in _leaves(each, f"{path}.{name}")]
    return [path.removeprefix(".")]
