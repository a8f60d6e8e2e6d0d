"""What people see: notes and progress on standard error, results on standard output."""

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


# A server, a model or the name of a file could tell the terminal to do something.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# What Python makes of bytes that are no UTF-8, in the names of files.
_BYTES = re.compile(r"[\udc80-\udcff]")


def write_anything() -> None:
    """Have the standard streams write every text: what their encoding has no place for is escaped.

    Names of files may hold bytes that are no UTF-8, and streams may take ASCII only.  Streams that
    were closed lead nowhere: what is opened next must not take their place.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str) -> None:
    """Write a result."""
    typer.echo(printable(text))


def note(text: str) -> None:
    """Write a remark."""
    typer.echo(printable(text), err=True)


def printable(text: str) -> str:
    """Escape control characters, but for tabs and ends of lines, and bytes that are no UTF-8."""
    visible = _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return _BYTES.sub(lambda found: f"\\x{ord(found[0]) - 0xDC00:02x}", visible)


def print_table(rows: list[tuple[str, ...]]) -> None:
    """Write columns as wide as they need: no cell is ever broken or shortened."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def note_timings(timings_ms: Mapping[str, float]) -> None:
    """Write how long each stage took."""
    note(", ".join(f"{stage} {spent:.1f} ms" for stage, spent in timings_ms.items()))


def mask_line(mask: Mask) -> str:
    """Write what there is to say of a mask other than its pixels."""
    return (
        f"predicted_iou={mask.predicted_iou:.4f} stability_score={mask.stability_score:.4f} "
        f"area={mask.area} bbox={','.join(f'{value:g}' for value in mask.bbox)}"
    )


def json_line(value: object) -> bytes:
    """Write a value as one line of JSON in UTF-8.

    Bytes of a file's name that are no UTF-8 become escapes, ``\\udcXX``, of which Python makes the
    same name again.
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
    note(f"wrote {destination}")
