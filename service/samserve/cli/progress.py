"""Progress of a command on standard error: bars and spinners on a terminal, else lines."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from samserve.cli.terminal import write_note

if TYPE_CHECKING:
    from rich.console import Console

Update: TypeAlias = Callable[[int, int | None], None]
"""Takes the completed amount and the total, None if that is unknown."""


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a spinner while the block runs; nothing if standard error is not a terminal."""
    console = _console()
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def point_progress() -> AbstractContextManager[Update]:
    """Show the number of evaluated grid points: a bar, or nothing without a terminal."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), TimeElapsedColumn())
    return _bar("grid points", None, columns, lambda done, total: None)


def byte_progress(text: str) -> AbstractContextManager[Update]:
    """Show the number of received bytes: a bar, or a line for each 10 % without a terminal."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    lines = _TenPercentSteps(
        lambda done, total: f"{text}: {done >> 20} of {total >> 20} MiB", shown=-1
    )
    return _bar(text, None, (DownloadColumn(), TransferSpeedColumn()), lines)


@contextmanager
def item_progress(text: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show the number of completed items: a bar, or a line for each 10 % without a terminal.

    The yielded function counts one more item.
    """
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    if quiet:
        yield lambda: None
        return
    lines = _TenPercentSteps(lambda done, total: f"{text}: {done} of {total}")
    columns = (MofNCompleteColumn(), TimeRemainingColumn())
    numbers = itertools.count(1)
    with _bar(text, total, columns, lines) as update:
        yield lambda: update(next(numbers), total)


@contextmanager
def _bar(
    text: str, total: int | None, columns: Sequence[Any], fallback: Update
) -> Iterator[Update]:
    """Yield the function that updates a bar; *fallback* without a terminal."""
    from rich.progress import BarColumn, Progress

    console = _console()
    if not console.is_terminal:
        yield fallback
        return
    shown = ("{task.description}", BarColumn(), *columns)
    # Standard output may be a pipe: the bar must not redirect it.
    with Progress(*shown, console=console, redirect_stdout=False) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass(slots=True)
class _TenPercentSteps:
    """Writes a line of progress for each 10 %."""

    line: Callable[[int, int], str]
    shown: int = 0

    def __call__(self, done: int, total: int | None) -> None:
        tenth = 10 * done // total if total else 0
        if tenth != self.shown:
            self.shown = tenth
            write_note(self.line(done, total or 0))
