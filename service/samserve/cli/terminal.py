"""What people see: notes and progress on standard error, results on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from samserve.client import Mask

STDOUT = "-"


def say(text: str) -> None:
    """Write a result."""
    typer.echo(text)


def note(text: str) -> None:
    """Write a remark."""
    typer.echo(text, err=True)


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
    """Write what there is to say of a mask besides its pixels."""
    return (
        f"predicted_iou={mask.predicted_iou:.4f} stability_score={mask.stability_score:.4f} "
        f"area={mask.area} bbox={','.join(f'{value:g}' for value in mask.bbox)}"
    )


def console() -> Console:
    """Open standard error for moving things."""
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Turn a wheel while the block runs; nothing where nobody watches."""
    screen = console()
    if not screen.is_terminal:
        yield
        return
    with screen.status(text):
        yield


@contextmanager
def downloading(text: str) -> Iterator[Callable[[int, int | None], None]]:
    """Show how much has arrived: a bar, or a line for each tenth where nobody watches.

    What is yielded takes the bytes so far and those of the whole, if known.
    """
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    screen = console()
    if not screen.is_terminal:
        yield _Tenths(text)
        return
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=screen) as bar:
        task = bar.add_task(text, total=None)
        yield lambda arrived, whole: bar.update(task, completed=arrived, total=whole)


class _Tenths:
    """Notes progress in steps of ten per cent."""

    def __init__(self, text: str) -> None:
        self._text, self._told = text, -1

    def __call__(self, arrived: int, whole: int | None) -> None:
        tenth = 10 * arrived // whole if whole else 0
        if tenth != self._told:
            self._told = tenth
            note(f"{self._text}: {arrived >> 20} of {(whole or 0) >> 20} MiB")


def write_json(destination: str, value: object) -> None:
    """Write a value as JSON to a file, or to standard output for ``-``."""
    text = json.dumps(value, ensure_ascii=False)
    if destination == STDOUT:
        say(text)
        return
    Path(destination).write_text(f"{text}\n", encoding="utf-8")
    note(f"wrote {destination}")
