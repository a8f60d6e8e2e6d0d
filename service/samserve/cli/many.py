"""One call for each of many images: records as JSON Lines, counts, and the failures at the end."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import typer

from samserve.cli import bulk
from samserve.cli.errors import CommandError
from samserve.cli.inputs import Found, Input
from samserve.cli.terminal import STDOUT, json_line, write_line, write_note

Record: TypeAlias = Mapping[str, Any]

CONCURRENCY = 4
"""The number of concurrent calls, unless an option selects it."""


@dataclass(frozen=True, slots=True)
class Job:
    """The call for each image, which returns its record without the keys ``file`` and ``error``.

    Its `CommandError` is the failure of that image.  A failed image has the record *empty*.
    """

    text: str
    call: Callable[[Input], Awaitable[Record]]
    empty: Record = field(default_factory=dict)
    concurrency: int = CONCURRENCY


@dataclass(slots=True)
class Outcome:
    """The failures, one line each, and the error that aborted the job, if any."""

    failures: list[str] = field(default_factory=list)
    aborted: Sequence[str] = ()
    succeeded: int = 0


async def run(found: Found, job: Job, as_json: str, count: Callable[[Record], None]) -> Outcome:
    """Make the calls, write the records to *as_json*, and pass each successful one to *count*."""
    # Records that are printed to the terminal show the progress already.
    shown = as_json == STDOUT and sys.stdout.isatty()
    outcome = Outcome()
    with _records(as_json) as write:

        def fail(name: str, text: str) -> None:
            outcome.failures.append(f"{name}: {text}")
            write({"file": name, **job.empty, "error": text})

        async def process(image: Input) -> None:
            try:
                record = await job.call(image)
            except CommandError as error:
                fail(str(image), str(error))
                return
            outcome.succeeded += 1
            count(record)
            write({"file": str(image), **record, "error": None})

        for failure in found.failures:
            fail(str(failure.filename), failure.strerror or str(failure))
        each = bulk.Job(
            job.text, process, lambda image, text: fail(str(image), text), job.concurrency
        )
        outcome.aborted = await bulk.run(found.images, each, quiet=shown)
    return outcome


def report(found: Found, outcome: Outcome, counts: Mapping[str, int], as_json: str) -> None:
    """Print counts, to standard error if the records are on standard output.

    Raises `CommandError` if an image has failed.
    """
    total = len(found.images) + len(found.failures)
    failed = len(outcome.failures)
    shown = {"files": total, **counts, "failed": failed}
    exceptions = {
        "not attempted": total - outcome.succeeded - failed,
        "skipped": found.skipped,
    }
    shown |= {name: number for name, number in exceptions.items() if number}
    write = write_note if as_json == STDOUT else write_line
    write("\n".join(f"{name}: {number}" for name, number in shown.items()))
    failures = [*bulk.truncated(outcome.failures, "--json lists all"), *outcome.aborted]
    if failures:
        raise CommandError(*failures)


@contextmanager
def _records(destination: str) -> Iterator[Callable[[Record], object]]:
    """Yield a function that writes a record immediately, so that an interrupt loses none."""
    if not destination:
        yield lambda record: None
        return
    if destination == STDOUT:
        yield lambda record: typer.echo(json_line(record), nl=False)
        return
    with Path(destination).open("wb", buffering=0) as file:
        yield lambda record: file.write(json_line(record))
    write_note(f"wrote {destination}")
