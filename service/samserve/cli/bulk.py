"""Many calls for one command: some at once, patient with a busy server, and with progress."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from samserve.cli.progress import counting
from samserve.cli.session import describe, unreachable
from samserve.cli.terminal import note
from samserve.client import ModelNotFound, ResourceExhausted, SamserveClientError

_T = TypeVar("_T")

# What every further call would be told too.
_HOPELESS = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})
# A server that says "now" must not be asked in a tight loop.
_LEAST_WAIT_S = 0.05
_MOST_TIMES = 8
_MOST_TOLD = 20


@dataclass(frozen=True, slots=True)
class Job(Generic[_T]):
    """What to do with each item, and with the text of what has failed for one."""

    text: str
    call: Callable[[_T], Awaitable[None]]
    failed: Callable[[_T, str], None]
    concurrency: int


async def run(items: Sequence[_T], job: Job[_T], *, quiet: bool) -> list[str]:
    """Do a job on all items with progress, unless *quiet*; return what has ended it, if anything.

    What all others would be told too ends it.
    """
    patience = _Patience()
    with counting(job.text, len(items), quiet=quiet) as count:

        async def one(item: _T) -> None:
            try:
                await patience.ask(lambda: job.call(item))
            except SamserveClientError as error:
                if _hopeless(error):
                    raise
                job.failed(item, describe(error))
            count()

        try:
            await _each(items, one, job.concurrency)
        except SamserveClientError as error:
            return [describe(error)]
    return []


async def _each(
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


class _Patience:
    """Repeats calls that the server refuses for now, when it says that it will take them.

    One at a time, since those that wait would take each other's place.  A call may be made of two
    requests, of which a quota lets one pass; so what is refused again waits longer.
    """

    def __init__(self) -> None:
        self._told = False
        self._turn = asyncio.Lock()

    async def ask(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call until it is not refused, or waiting does not help."""
        wait_s = await self._refused(call)
        if wait_s is None:
            return
        async with self._turn:
            for refusals in itertools.count():
                await asyncio.sleep(wait_s * min(2**refusals, _MOST_TIMES))
                wait_s = await self._refused(call)
                if wait_s is None:
                    return

    async def _refused(self, call: Callable[[], Awaitable[None]]) -> float | None:
        """Make a call; return the server's time if it is refused for now."""
        try:
            await call()
        except ResourceExhausted as error:
            if error.retry_after_s is None:
                raise
            # Said once; a long job is refused often.
            if not self._told:
                note(f"waiting as the server asks: {describe(error)}")
            self._told = True
            return max(error.retry_after_s, _LEAST_WAIT_S)
        return None


def _hopeless(error: SamserveClientError) -> bool:
    """Return whether all further calls would fail in the same way."""
    return unreachable(error) or isinstance(error, ModelNotFound) or error.code in _HOPELESS


def shortened(failures: list[str], hint: str) -> list[str]:
    """Return as many failures as anybody reads, and what there are more."""
    more = len(failures) - _MOST_TOLD
    return [*failures[:_MOST_TOLD], f"{more} more; {hint}"] if more > 0 else failures
