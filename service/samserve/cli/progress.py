"""What moves on standard error while a command works, where that is a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from samserve.cli.terminal import note

if TYPE_CHECKING:
    from rich.console import Console

Move: TypeAlias = Callable[[int, int | None], None]
"""Takes how much is done and how much there is in all, if that is known."""


def _console() -> Console:
    from rich.console import Console

    return Console(stderr=True)


@contextmanager
def busy(text: str) -> Iterator[None]:
    """Turn a wheel while the block runs; nothing where standard error is no terminal."""
    screen = _console()
    if not screen.is_terminal:
        yield
        return
    with screen.status(text):
        yield


def searching() -> AbstractContextManager[Move]:
    """Show how many points of the grid were tried: a bar, or nothing without a terminal."""
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn

    columns = (MofNCompleteColumn(), TimeElapsedColumn())
    return _moving("grid points", None, columns, lambda done, whole: None)


def downloading(text: str) -> AbstractContextManager[Move]:
    """Show how many bytes have arrived: a bar, or a line for each tenth without a terminal."""
    from rich.progress import DownloadColumn, TransferSpeedColumn

    lines = _Tenths(lambda done, whole: f"{text}: {done >> 20} of {whole >> 20} MiB", told=-1)
    return _moving(text, None, (DownloadColumn(), TransferSpeedColumn()), lines)


@contextmanager
def counting(text: str, whole: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show how many of *whole* are done: a bar, or a line for each tenth without a terminal.

    What is yielded counts one more.
    """
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    if quiet:
        yield lambda: None
        return
    lines = _Tenths(lambda done, whole: f"{text}: {done} of {whole}")
    columns = (MofNCompleteColumn(), TimeRemainingColumn())
    numbers = itertools.count(1)
    with _moving(text, whole, columns, lines) as move:
        yield lambda: move(next(numbers), whole)


@contextmanager
def _moving(
    text: str, whole: int | None, columns: Sequence[Any], otherwise: Move
) -> Iterator[Move]:
    """Yield what moves a bar; *otherwise* without a terminal."""
    from rich.progress import BarColumn, Progress

    screen = _console()
    if not screen.is_terminal:
        yield otherwise
        return
    shown = ("{task.description}", BarColumn(), *columns)
    # Standard output may be a pipe: the bar must not take it over.
    with Progress(*shown, console=screen, redirect_stdout=False) as bar:
        task = bar.add_task(text, total=whole)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)


@dataclass(slots=True)
class _Tenths:
    """Notes progress in steps of ten per cent."""

    line: Callable[[int, int], str]
    told: int = 0

    def __call__(self, done: int, whole: int | None) -> None:
        tenth = 10 * done // whole if whole else 0
        if tenth != self.told:
            self.told = tenth
            note(self.line(done, whole or 0))
