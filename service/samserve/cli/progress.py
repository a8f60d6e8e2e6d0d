"""Progress of a command on standard error: bars and spinners on a terminal, else lines."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from samserve.cli.terminal import write_note

if TYPE_CHECKING:
    from rich.console import Console

Update: TypeAlias = Callable[[int, int | None], None]
"""Takes the completed amount and the total, None if that is unknown."""

# Commands that end sooner write no lines of grid points.
_LONG_S = 5.0


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
    """Show the number of evaluated grid points: a bar, or lines without a terminal.

    The lines begin when the command has run for some seconds.
    """
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    text = "grid points"
    lines = TenPercentSteps(lambda done, total: f"{text}: {done} of {total}", silent_s=_LONG_S)
    return _bar(text, None, columns, lines)


def byte_progress(text: str) -> AbstractContextManager[Update]:
    """Show the number of received bytes: a bar, or a line for each 10 % without a terminal."""
    from rich.progress import DownloadColumn, TimeRemainingColumn, TransferSpeedColumn

    lines = TenPercentSteps(
        lambda done, total: f"{text}: {done >> 20} of {total >> 20} MiB", shown=-1
    )
    columns = (DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    return _bar(text, None, columns, lines)


@contextmanager
def item_progress(text: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[], None]]:
    """Show the number of completed items: a bar, or a line for each 10 % without a terminal.

    The yielded function counts one more item.
    """
    from rich.progress import MofNCompleteColumn, TimeRemainingColumn

    if quiet:
        yield lambda: None
        return
    lines = TenPercentSteps(lambda done, total: f"{text}: {done} of {total}")
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
class TenPercentSteps:
    """Writes a line of progress for each 10 %, with the time left at the speed until then.

    Writes nothing in the first *silent_s* seconds.
    """

    line: Callable[[int, int], str]
    shown: int = 0
    silent_s: float = 0.0
    now: Callable[[], float] = time.monotonic
    _started: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self.now()

    def __call__(self, done: int, total: int | None) -> None:
        """Write a line if another 10 % is completed."""
        tenth = 10 * done // total if total else 0
        elapsed = self.now() - self._started
        if tenth == self.shown or elapsed < self.silent_s:
            return
        self.shown = tenth
        write_note(f"{self.line(done, total or 0)}{_time_left(elapsed, done, total or 0)}")


def _time_left(elapsed_s: float, done: int, total: int) -> str:
    """Return the end of a line: the remaining time, or nothing if it is short or unknown."""
    if not 0 < done < total:
        return ""
    left_s = round(elapsed_s * (total - done) / done)
    if left_s < 1:
        return ""
    minutes = round(left_s / 60)
    if left_s < 90:
        return f", about {left_s} s left"
    if minutes < 90:
        return f", about {minutes} min left"
    return f", about {minutes // 60} h {minutes % 60} min left"
