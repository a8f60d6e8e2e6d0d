"""Progress of a command on standard error: bars and spinners on a terminal, else lines."""

from __future__ import annotations

import itertools
import math
import sys
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
# Between lines about images, which may go on for days.
_LINE_INTERVAL_S = 60.0
# In characters: leaves space for the rate and the time left on a terminal of 80.
_SHORT_BAR = 16


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
def image_progress(text: str, total: int) -> Iterator[Callable[[bool], None]]:
    """Show the number of processed images, the rate and the time left: a bar, or lines.

    The yielded function counts one more image; its argument is whether there was work to do.  The
    rate is that of images with work.
    """
    from rich.progress import MofNCompleteColumn, ProgressColumn, Task, TimeElapsedColumn
    from rich.table import Column
    from rich.text import Text

    class Speed(ProgressColumn):
        # Not that of rich, which is of the last images: several are under way, and end together.
        shown = (0, "")

        def render(self, task: Task) -> Text:
            done = int(task.completed)
            if done != self.shown[0]:
                self.shown = (done, lines.speed(done, total, task.elapsed or 0.0))
            return Text(self.shown[1])

    lines = TenPercentSteps(
        lambda done, total: f"{text}: {done} of {total}", every_s=_LINE_INTERVAL_S, rate=_rate
    )
    numbers = itertools.count(1)
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), Speed(Column(no_wrap=True)))
    with _bar(text, total, columns, lines, bar_width=_SHORT_BAR) as update:

        def advance(worked: bool) -> None:
            lines.without_work += not worked
            update(next(numbers), total)

        yield advance


@contextmanager
def record_progress(text: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show the number of images of a data set that are done: a bar, or lines without a terminal.

    *total* is None if it is unknown; the yielded function takes the number.  The lines begin when
    the command has run for some seconds.
    """
    from rich.progress import MofNCompleteColumn, TimeElapsedColumn, TimeRemainingColumn

    lines = TenPercentSteps(
        lambda done, total: f"{text}: {done}{f' of {total}' if total else ''} images",
        silent_s=_LONG_S,
        every_s=_LINE_INTERVAL_S,
        rate=_rate,
    )
    columns = (MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # Results go to the same terminal while the bar is shown, or not to a terminal.
    with _bar(text, total, columns, lines, redirect_stdout=sys.stdout.isatty()) as update:
        yield lambda done: update(done, total)


def _rate(per_s: float) -> str:
    """Return the rate of a progress, of images."""
    return f"{per_s:.2f} images/s" if per_s < 10 else f"{per_s:.0f} images/s"


@contextmanager
def _bar(
    text: str,
    total: int | None,
    columns: Sequence[Any],
    fallback: Update,
    *,
    redirect_stdout: bool = False,
    bar_width: int = 40,
) -> Iterator[Update]:
    """Yield the function that updates a bar; *fallback* without a terminal."""
    from rich.progress import BarColumn, Progress

    console = _console()
    if not console.is_terminal:
        yield fallback
        return
    shown = ("{task.description}", BarColumn(bar_width), *columns)
    # Standard output may be a pipe: the bar must not redirect it.
    with Progress(*shown, console=console, redirect_stdout=redirect_stdout) as bar:
        task = bar.add_task(text, total=total)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@dataclass(slots=True)
class TenPercentSteps:
    """Writes a line of progress for each 10 %, with the time left at the speed until then.

    Also writes one after *every_s* seconds, and nothing in the first *silent_s* seconds.  *rate*
    returns a text for a number of items per second.  ``without_work`` counts items that took no
    time, such as those that an earlier run has finished.
    """

    line: Callable[[int, int], str]
    shown: int = 0
    silent_s: float = 0.0
    now: Callable[[], float] = time.monotonic
    every_s: float = math.inf
    rate: Callable[[float], str] | None = None
    without_work: int = 0
    _started: float = field(init=False)
    _written: float = field(init=False)

    def __post_init__(self) -> None:
        self._started = self._written = self.now()

    def __call__(self, done: int, total: int | None) -> None:
        """Write a line if another 10 % is completed, or the last one is long ago."""
        tenth = 10 * done // total if total else 0
        now = self.now()
        elapsed = now - self._started
        due = tenth != self.shown or now - self._written >= self.every_s
        if not due or elapsed < self.silent_s:
            return
        self.shown, self._written = tenth, now
        speed = self.speed(done, total or 0, elapsed)
        write_note(", ".join(filter(None, (self.line(done, total or 0), speed))))

    def speed(self, done: int, total: int, elapsed_s: float) -> str:
        """Return the rate since the start, if there is one, and the time left."""
        worked = done - self.without_work
        rate = self.rate(worked / elapsed_s) if self.rate and worked and elapsed_s else ""
        return ", ".join(filter(None, (rate, _time_left(elapsed_s, worked, total - done))))


def _time_left(elapsed_s: float, done: int, remaining: int) -> str:
    """Return the end of a line: the remaining time, or nothing if it is short or unknown."""
    if done <= 0 or remaining <= 0:
        return ""
    left_s = round(elapsed_s * remaining / done)
    if left_s < 1:
        return ""
    minutes = round(left_s / 60)
    if left_s < 90:
        return f"about {left_s} s left"
    if minutes < 90:
        return f"about {minutes} min left"
    return f"about {minutes // 60} h {minutes % 60} min left"
