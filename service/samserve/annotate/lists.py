"""Text files with one path or URL in each line."""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from typing import NamedTuple

from samserve.annotate.locations import without_secrets


class Failure(NamedTuple):
    """What cannot be read, and why."""

    name: str
    reason: str

    def __str__(self) -> str:
        """Return both as one line."""
        return f"{self.name}: {self.reason}"


class Entry(NamedTuple):
    """A line: the URL, and the name of the image in records."""

    url: str
    name: str


def parse(data: bytes, folder: str) -> tuple[Sequence[Entry], Sequence[Failure]]:
    """Return the entries of a list in *folder*, a URL, and a failure for each that cannot be used.

    A relative path is one from *folder*.  The name of what is below *folder* is relative to it; the
    name of other files is their path, with the host of a URL.  Empty lines are left out.
    """
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    entries: dict[str, Entry] = {}
    failures: list[Failure] = []
    for number, line in enumerate(text.split("\n"), start=1):
        given = line.rstrip("\r")
        if not given.strip():
            continue
        url = _absolute(given, folder)
        name = _name(url, folder)
        if not name or name in entries:
            problem = "is in the list twice" if name else "has no name"
            failures.append(Failure(without_secrets(given), f"line {number} {problem}"))
            continue
        entries[name] = Entry(url, name)
    return list(entries.values()), failures


def _absolute(given: str, folder: str) -> str:
    if "://" in given:
        return given
    return f"file://{given}" if given.startswith("/") else f"{folder}/{given}"


def _name(url: str, folder: str) -> str:
    """Return a relative path without ``..``."""
    below = url.startswith(f"{folder}/")
    rest = url[len(folder) + 1 :] if below else url.partition("://")[2].rpartition("@")[2]
    path = rest.partition("?")[0] if url.startswith(("http://", "https://")) else rest
    return posixpath.normpath(f"/{path}").lstrip("/")
