"""A program of its own: copies standard input to standard output, each line as a JSON object.

It runs beside the server, and not as a thread of it, so that the last lines of a server that has
crashed are written too, and so that a library that writes much while it holds Python's lock does
not wait for itself.  (With process 1 of a container, the kernel ends all others: there the last
lines may be missing.)  It imports nothing of the package: it starts in a moment and stays small.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

FLUSHED = b"\0"
"""A line that asks for a byte on the descriptor in the first argument: all before is written."""

_MOST_BYTES = 1 << 16
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical", "V": "debug"}
# Google's logging, as gRPC has it, and ONNX Runtime's, perhaps in colour.
_LEVEL = re.compile(r"^(?:\x1b\[[0-9;]*m)?(?:([IWEF])\d{4} |[-0-9]+ [.:0-9]+ \[([VIWEF]):)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OURS = "samserve: error: "


def line_of(text: bytes) -> bytes:
    """Return a line that is one of the log's as it is, and wrap any other."""
    if text.startswith(b"{"):
        with contextlib.suppress(ValueError, RecursionError):
            json.loads(text)
            return text + b"\n"
    message = text.decode("utf-8", "backslashreplace")
    entry = {
        "event": _COLOUR.sub("", message),
        "level": _level(message),
        "logger": "stderr",
        "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
    }
    return json.dumps(entry).encode() + b"\n"


def _level(message: str) -> str:
    if message.startswith(_OURS):
        return "error"
    match = _LEVEL.match(message)
    return "warning" if match is None else _LEVELS[match[1] or match[2]]


def _lines(source: int) -> Iterator[bytes]:
    """Yield the lines that come, without their ends; what is very long comes in parts."""
    rest = b""
    while data := os.read(source, _MOST_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _MOST_BYTES and not rest.startswith(b"{"):
            yield rest
            rest = b""
    if rest:
        yield rest


def _write(data: bytes) -> None:
    # A full disk, or a reader that has left, loses lines and nothing else.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def main() -> None:
    """Copy until the last process that writes has ended."""
    for line in _lines(0):
        if line == FLUSHED:
            # Who has asked may have gone meanwhile.
            with contextlib.suppress(OSError):
                os.write(int(sys.argv[1]), b".")
        elif line.strip():
            _write(line_of(line))


if __name__ == "__main__":
    main()
