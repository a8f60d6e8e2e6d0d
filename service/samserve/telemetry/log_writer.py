"""A separate program that copies standard input to standard output, each line as a JSON object.

It is a process and not a thread of the server, so that the last lines of a crashed server are
written, and so that a library that writes while it holds the GIL does not deadlock when the pipe is
full.  (If the server is process 1 of a container, the kernel ends all other processes with it, and
the last lines may be missing.)  It imports nothing of the package, to start quickly and stay small.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

FLUSH_MARKER = b"\0"
"""A line that requests a byte on the descriptor in the first argument once all is written."""

_MAX_BYTES = 1 << 16
_LEVELS = {"I": "info", "W": "warning", "E": "error", "F": "critical", "V": "debug"}
# The formats of glog (gRPC) and of ONNX Runtime, optionally with colour codes.
_LEVEL = re.compile(r"^(?:\x1b\[[0-9;]*m)?(?:([IWEF])\d{4} |[-0-9]+ [.:0-9]+ \[([VIWEF]):)")
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_CLI_ERROR = "samserve: error: "


def json_line(text: bytes) -> bytes:
    """Return a line that is a JSON object unchanged, and any other as a new JSON object."""
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
    if message.startswith(_CLI_ERROR):
        return "error"
    match = _LEVEL.match(message)
    return "warning" if match is None else _LEVELS[match[1] or match[2]]


def _lines(source: int) -> Iterator[bytes]:
    """Yield the received lines without line ends; very long lines are split."""
    rest = b""
    while data := os.read(source, _MAX_BYTES):
        *lines, rest = (rest + data).split(b"\n")
        yield from lines
        if len(rest) > _MAX_BYTES and not rest.startswith(b"{"):
            yield rest
            rest = b""
    if rest:
        yield rest


def _write(data: bytes) -> None:
    # A full disk or a closed reader loses lines, without other effects.
    with contextlib.suppress(OSError):
        while data:
            data = data[os.write(1, data) :]


def main() -> None:
    """Copy until the last writing process has ended."""
    for line in _lines(0):
        if line == FLUSH_MARKER:
            # The requesting process may have ended.
            with contextlib.suppress(OSError):
                os.write(int(sys.argv[1]), b".")
        elif line.strip():
            _write(json_line(line))


if __name__ == "__main__":
    main()
