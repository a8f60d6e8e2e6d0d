"""Many calls for one command: some at once, patient with a busy server, and with progress."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from samserve.cli import terminal
from samserve.client import ModelNotFound, ResourceExhausted, SamserveClientError, Unavailable

_T = TypeVar("_T")

# What every further call would be told too.
_HOPELESS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})
# A server that says "now" shall not be asked in a tight loop.
_LEAST_WAIT_S = 0.05
_MOST_TIMES = 8
_MOST_TOLD = 20


async def each(
    items: Iterable[_T], work: Callable[[_T], Awaitable[None]], concurrency: int
) -> None:
    """Do *work* on all items, *concurrency* at a time; its first failure ends all of it."""
    left = iter(items)

    async def take() -> None:
        for item in left:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(take())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


class Patience:
    """Repeats calls that the server refuses for now, when it says that it will take them.

    One at a time, since those that wait would take each other's place.  A call may be made of two
    requests, of which a quota lets one pass; so what is refused again waits longer.
    """

    def __init__(self, remark: Callable[[str], None]) -> None:
        self._remark = remark
        self._told = False
        self._turn = asyncio.Lock()

    async def ask(self, call: Callable[[], Awaitable[_T]]) -> _T:
        """Make a call until it is not refused, or waiting does not help."""
        try:
            return await call()
        except ResourceExhausted as error:
            wait_s = self._wait_s(error)
        async with self._turn:
            for refusals in itertools.count():
                await asyncio.sleep(wait_s * min(2**refusals, _MOST_TIMES))
                try:
                    return await call()
                except ResourceExhausted as error:
                    wait_s = self._wait_s(error)
        raise AssertionError("it is asked for ever")

    def _wait_s(self, error: ResourceExhausted) -> float:
        """Return the server's time.  Raises the error if it tells none."""
        if error.retry_after_s is None:
            raise error
        self._tell(error)
        return max(error.retry_after_s, _LEAST_WAIT_S)

    def _tell(self, error: ResourceExhausted) -> None:
        """Say it once; a long job is refused often."""
        if not self._told:
            self._remark(f"waiting as the server asks: {describe(error)}")
        self._told = True


def describe(error: SamserveClientError) -> str:
    """Say in one line what the server has answered, or that it has not."""
    if _unreachable(error):
        return f"the server cannot be reached: {error.message}"
    return f"{error.message} ({error.reason or error.code}, request {error.request_id})"


def hopeless(error: SamserveClientError) -> bool:
    """Return whether all further calls would fail in the same way."""
    return _unreachable(error) or isinstance(error, ModelNotFound) or error.code in _HOPELESS


def _unreachable(error: SamserveClientError) -> bool:
    return isinstance(error, Unavailable) and not error.reason


def shortened(failures: list[str], hint: str) -> list[str]:
    """Return as many failures as anybody reads, and what there are more."""
    more = len(failures) - _MOST_TOLD
    return [*failures[:_MOST_TOLD], f"{more} more; {hint}"] if more > 0 else failures


@dataclass(frozen=True, slots=True)
class Counter:
    """Counts one more, and says something beside that."""

    count: Callable[[], None]
    remark: Callable[[str], None] = terminal.note


@contextmanager
def counting(text: str, whole: int, *, quiet: bool = False) -> Iterator[Counter]:
    """Show how many of *whole* are done: a bar, or a line for each tenth where nobody watches."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    screen = terminal.console()
    if quiet:
        yield Counter(lambda: None)
        return
    if not screen.is_terminal:
        yield Counter(_Tenths(text, whole))
        return
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Standard output may be a pipe: the bar must not take it over.
    with Progress(*columns, console=screen, redirect_stdout=False) as bar:
        task = bar.add_task(text, total=whole)
        above = partial(screen.print, markup=False, highlight=False, soft_wrap=True)
        yield Counter(lambda: bar.advance(task), above)


class _Tenths:
    """Notes progress in steps of ten per cent."""

    def __init__(self, text: str, whole: int) -> None:
        self._text, self._whole = text, whole
        self._done = 0

    def __call__(self) -> None:
        before, self._done = self._done, self._done + 1
        if 10 * before // self._whole != 10 * self._done // self._whole:
            terminal.note(f"{self._text}: {self._done} of {self._whole}")
