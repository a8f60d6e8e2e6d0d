"""Output: results on standard output, notes on standard error."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from samserve.client import Mask

STDOUT = "-"


# Text from a server, a model or a file name could contain control sequences for the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# How Python represents bytes of file names that are not UTF-8.
_BYTES = re.compile(r"[\udc80-\udcff]")


def escape_unencodable() -> None:
    """Make the standard streams escape characters that their encoding cannot represent.

    File names may contain bytes that are not UTF-8, and streams may be limited to ASCII.  Closed
    streams are replaced by the null device, so that the next opened file does not get their number.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def write_line(text: str) -> None:
    """Write a result to standard output."""
    typer.echo(printable(text))


def write_note(text: str) -> None:
    """Write a note to standard error."""
    typer.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Escape control characters other than tabs and newlines, and bytes that are not UTF-8."""
    visible = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return _BYTES.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", visible)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Write aligned columns; cells are never wrapped or truncated."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        write_line("  ".join(cells).rstrip())


def write_timings(timings_ms: Mapping[str, float]) -> None:
    """Write the duration of each stage as a note."""
    write_note(", ".join(f"{stage} {spent:.1f} ms" for stage, spent in timings_ms.items()))


def mask_line(mask: Mask) -> str:
    """Return the scores, area and bounding box of a mask as one line."""
    polygons = "" if mask.polygons is None else f" polygon_iou={mask.polygons.iou:.4f}"
    return (
        f"predicted_iou={mask.predicted_iou:.4f} stability_score={mask.stability_score:.4f} "
        f"area={mask.area} bbox={','.join(f'{value:g}' for value in mask.bbox)}{polygons}"
    )


def json_line(value: object) -> bytes:
    """Return a value as one line of JSON in UTF-8.

    Bytes of file names that are not UTF-8 become escapes, ``\\udcXX``, which Python decodes to the
    same name.
    """
    text = json.dumps(value, ensure_ascii=False)
    return f"{text}\n".encode("utf-8", "backslashreplace")


def write_json(destination: str, value: object) -> None:
    """Write a value as JSON to a file, or to standard output for ``-``."""
    data = json_line(value)
    if destination == STDOUT:
        typer.echo(data, nl=False)
        return
    Path(destination).write_bytes(data)
    write_note(f"wrote {destination}")
