"""Many calls for one command: concurrent, with retries while the server is busy, and progress."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from samserve.cli.progress import item_progress
from samserve.cli.session import describe, unreachable
from samserve.cli.terminal import write_note
from samserve.client import ModelNotFound, ResourceExhausted, SamserveClientError

_T = TypeVar("_T")

# Codes that every further call would return too.
_FATAL_CODES = frozenset({"PERMISSION_DENIED", "UNAUTHENTICATED", "UNIMPLEMENTED"})
# Avoids a tight loop if the server returns a retry delay of 0.
_MIN_WAIT_S = 0.05
_MAX_BACKOFF_FACTOR = 8
_MAX_LISTED = 20


@dataclass(frozen=True, slots=True)
class Job(Generic[_T]):
    """The call to make for each item, and the callback for an item that has failed."""

    text: str
    call: Callable[[_T], Awaitable[None]]
    on_failure: Callable[[_T, str], None]
    concurrency: int


async def run(items: Sequence[_T], job: Job[_T], *, quiet: bool) -> list[str]:
    """Run a job for all items, with progress unless *quiet*; return the error that aborted it.

    An error that every further call would return too aborts the job.
    """
    retries = _Retries()
    with item_progress(job.text, len(items), quiet=quiet) as advance:

        async def process(item: _T) -> None:
            try:
                await retries.run(lambda: job.call(item))
            except SamserveClientError as error:
                if _is_fatal(error):
                    raise
                job.on_failure(item, describe(error))
            advance()

        try:
            await _for_each(items, process, job.concurrency)
        except SamserveClientError as error:
            return [describe(error)]
    return []


async def _for_each(
    items: Iterable[_T], work: Callable[[_T], Awaitable[None]], concurrency: int
) -> None:
    """Run *work* for all items, *concurrency* at a time; the first exception cancels the rest."""
    remaining = iter(items)

    async def worker() -> None:
        for item in remaining:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


class _Retries:
    """Retries calls that the server rejects temporarily, after the delay that it returns.

    Only one call is retried at a time, since waiting calls would compete for the same quota.  A
    call may consist of two requests, of which a quota admits one; so the delay grows with each
    rejection.
    """

    def __init__(self) -> None:
        self._noted = False
        self._lock = asyncio.Lock()

    async def run(self, call: Callable[[], Awaitable[None]]) -> None:
        """Make a call until it is accepted or fails with an error that a retry cannot fix."""
        wait_s = await self._attempt(call)
        if wait_s is None:
            return
        async with self._lock:
            for rejections in itertools.count():
                await asyncio.sleep(wait_s * min(2**rejections, _MAX_BACKOFF_FACTOR))
                wait_s = await self._attempt(call)
                if wait_s is None:
                    return

    async def _attempt(self, call: Callable[[], Awaitable[None]]) -> float | None:
        """Make a call; return the delay before the next attempt if it was rejected."""
        try:
            await call()
        except ResourceExhausted as error:
            if error.retry_after_s is None:
                raise
            # Only once; a long job is rejected often.
            if not self._noted:
                write_note(f"retrying after the delay that the server returned: {describe(error)}")
            self._noted = True
            return max(error.retry_after_s, _MIN_WAIT_S)
        return None


def _is_fatal(error: SamserveClientError) -> bool:
    """Return whether all further calls would fail in the same way."""
    return unreachable(error) or isinstance(error, ModelNotFound) or error.code in _FATAL_CODES


def truncated(failures: list[str], hint: str) -> list[str]:
    """Return the first failures, and one line with the number of the others."""
    more = len(failures) - _MAX_LISTED
    return [*failures[:_MAX_LISTED], f"{more} more; {hint}"] if more > 0 else failures
