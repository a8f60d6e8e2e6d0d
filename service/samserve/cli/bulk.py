"""Many calls for one command: concurrent, with retries while the server is busy, and progress."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from samserve.annotate.parallel import in_parallel
from samserve.annotate.retries import Retries, describe, is_fatal
from samserve.cli.progress import item_progress
from samserve.cli.terminal import write_note
from samserve.client import ResourceExhausted, SamserveClientError

_T = TypeVar("_T")

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
    retries = Retries(note_retry)
    with item_progress(job.text, len(items), quiet=quiet) as advance:

        async def process(item: _T) -> None:
            try:
                await retries.run(lambda: job.call(item))
            except SamserveClientError as error:
                if is_fatal(error):
                    raise
                job.on_failure(item, describe(error))
            advance()

        try:
            await in_parallel(items, process, job.concurrency)
        except SamserveClientError as error:
            return [describe(error)]
    return []


def note_retry(error: ResourceExhausted) -> None:
    """Note that a call is retried."""
    write_note(f"retrying after the delay that the server returned: {describe(error)}")


def truncated(failures: list[str], hint: str) -> list[str]:
    """Return the first failures, and one line with the number of the others."""
    more = len(failures) - _MAX_LISTED
    return [*failures[:_MAX_LISTED], f"{more} more; {hint}"] if more > 0 else failures
