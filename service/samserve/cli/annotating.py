"""AutoMask over many images, several under way: loaded from anywhere, and delivered anywhere.

A failure of one image is reported, and the others continue; what every further call would fail with
too ends the job.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from samserve.cli import bulk
from samserve.cli.many import CONCURRENCY
from samserve.client import AutoMaskResult, Client
from samserve.errors import DeadlineExceeded, InvalidRequest, Misconfigured, Unavailable

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Annotation(Generic[T]):
    """What to do with each item: load its image, segment everything, deliver the result.

    ``options`` are those of `Client.automask_all`.  *load* may raise `InvalidRequest`,
    `Unavailable` or `DeadlineExceeded`, and *deliver* `InvalidRequest`: these are failures of this
    item only.  *deliver* returns the number of regions.
    """

    name: Callable[[T], str]
    load: Callable[[T], Awaitable[bytes]]
    deliver: Callable[[T, AutoMaskResult], Awaitable[int]]
    options: Mapping[str, Any] = field(default_factory=dict)
    concurrency: int = CONCURRENCY


@dataclass(slots=True)
class Outcome:
    """The numbers of images and regions, one line for each failure, and what ended the job."""

    annotated: int = 0
    regions: int = 0
    failures: list[str] = field(default_factory=list)
    aborted: Sequence[str] = ()


async def annotate(client: Client, items: Sequence[T], job: Annotation[T]) -> Outcome:
    """Annotate all items, with progress; other errors of *load* and *deliver* are raised."""
    outcome = Outcome()

    def fail(item: T, text: str) -> None:
        outcome.failures.append(f"{job.name(item)}: {text}")

    async def process(item: T) -> None:
        try:
            image = await job.load(item)
        except Misconfigured:
            raise
        except (InvalidRequest, Unavailable, DeadlineExceeded) as error:
            fail(item, error.message)
            return
        result = await client.automask_all(image, **job.options)
        del image
        try:
            regions = await job.deliver(item, result)
        except InvalidRequest as error:
            fail(item, error.message)
            return
        outcome.annotated += 1
        outcome.regions += regions

    each = bulk.Job("annotating", process, fail, job.concurrency)
    outcome.aborted = await bulk.run(items, each, quiet=False)
    return outcome
