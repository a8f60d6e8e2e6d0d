"""Mutations of JSON values and of texts made of lines."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random
from typing import Any

from fuzz import mutation

_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    "",
    [],
    {},
    [[]],
    {"": {}},
    10**400,
    1e999,
    "\ud800",
    -1,
)


def json_mutated(data: bytes, random: Random, names: Sequence[str], good: bytes) -> bytes:
    """Change one value of a JSON document, that of *good* if *data* is none."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        data, document = good, json.loads(good)
    if random.random() < 0.02:
        depth = random.choice((10, 500, 1500))
        return b"[" * depth + data + b"]" * depth
    try:
        return json.dumps(_changed(document, random, names)).encode()
    except (ValueError, RecursionError):
        return data


def _changed(value: Any, random: Random, names: Sequence[str]) -> Any:
    if isinstance(value, dict) and random.random() < 0.9:
        return _changed_object(dict(value), random, names)
    if isinstance(value, list) and value and random.random() < 0.8:
        at = random.randrange(len(value))
        more = [value[at]] * random.choice((0, 1, 1, 1, 2))
        return [*value[:at], _changed(value[at], random, names), *more, *value[at + 1 :]]
    return _scalar(value, random)


def _changed_object(value: dict[str, Any], random: Random, names: Sequence[str]) -> Any:
    kind = random.randrange(6)
    if kind == 0 and value:
        del value[random.choice(list(value))]
    elif kind == 1 or not value:
        value[random.choice(names)] = _scalar(None, random)
    else:
        name = random.choice(list(value))
        value[name] = _changed(value[name], random, names)
    return value


def _scalar(value: Any, random: Random) -> Any:
    kind = random.randrange(5)
    if isinstance(value, str) and kind < 2:
        return mutation.mutated(value.encode("utf-8", "replace"), random).decode("latin-1")
    if kind == 2:
        return mutation.integer(random)
    if kind == 3:
        return mutation.double(random)
    return mutation.text(random) if kind == 4 else random.choice(_VALUES)


def lines_mutated(data: bytes, random: Random, words: Sequence[str]) -> bytes:
    """Change, repeat, drop or exchange lines, and the values behind their equals signs."""
    lines = data.split(b"\n")
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(len(lines))
        kind = random.randrange(7)
        if kind == 0 and len(lines) > 1:
            del lines[at]
        elif kind == 1:
            lines.insert(at, lines[random.randrange(len(lines))])
        elif kind == 2:
            lines.insert(at, random.choice(words).encode())
        elif kind == 3:
            lines[at] = mutation.mutated(lines[at], random)
        else:
            lines[at] = _assigned(lines[at], random, words)
    return b"\n".join(lines)


def _assigned(line: bytes, random: Random, words: Sequence[str]) -> bytes:
    name, equals, value = line.partition(b"=")
    if not equals:
        return line
    others = (
        *(random.choice(words).partition("=")[2], json.dumps(mutation.text(random))),
        *(str(mutation.integer(random)), str(mutation.double(random)), "[" * 700, "{a.b.c=1}"),
        *("1979-05-27T07:32:00+23:59", "0001-01-01T00:00:00Z", "9" * 4400, "1e400", "nan"),
    )
    chosen = random.choice(others).encode("utf-8", "surrogatepass")
    return name + b"=" + (chosen if random.random() < 0.8 else mutation.mutated(value, random))
