"""A run on a Ray cluster: blocks of images through a pool of workers."""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import ray.data
import ray.exceptions
from ray.util.annotations import RayDeprecationWarning

from samserve.annotate.pipeline import Outcome, State, Summary
from samserve.annotate.ray.nodes import Node
from samserve.annotate.ray.quiet import configure_logging, native_messages_discarded
from samserve.annotate.ray.work import Work, image_to_text, text_to_outcome
from samserve.annotate.ray.worker import BLOCKS, Worker
from samserve.annotate.source import ImageFile

RESTARTS = 5
"""How often a worker is started again that has ended, for example with its node.

Then another one takes its place, and the images that it had are failures: one of them may be why.
"""
_MIN_ROUNDS = 16
_MAX_BLOCK = 64
_MAX_BLOCKS = 20_000
# Of the results of a task, from which Ray Data derives how many may be under way.
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Pool:
    """The workers: their number, and the CPUs that each reserves."""

    workers: int
    cpus: float

    @classmethod
    def of(cls, nodes: Sequence[Node], workers: int | None, cpus: float) -> Pool:
        """Return a pool of one worker for each node, unless another number is given."""
        return cls(workers or len(nodes), cpus)


def run(
    images: Sequence[ImageFile],
    work: Work,
    pool: Pool,
    advance: Callable[[Outcome], None] = lambda outcome: None,
) -> Summary:
    """Annotate all images; *advance* is called with each outcome.  Blocks until the end.

    An image is a failure whose worker has ended more often than it is started again.  Images that a
    lost worker had annotated count as unchanged: they are met again, and have their record.
    """
    summary = Summary()
    started = time.monotonic()
    remaining = {image.name for image in images}
    try:
        for outcome in _outcomes(images, work, pool):
            if isinstance(outcome, str):
                summary.aborted = outcome
                break
            remaining.discard(outcome.name)
            summary.add(outcome)
            advance(outcome)
    except ray.exceptions.RayError as error:
        summary.aborted = f"Ray has ended the run: {_line(error)}"
    if not summary.aborted:
        for name in sorted(remaining):
            outcome = Outcome(name, State.FAILED, reason=_LOST)
            summary.add(outcome)
            advance(outcome)
    summary.seconds = time.monotonic() - started
    return summary


_LOST = f"its worker on the Ray cluster has ended {RESTARTS + 1} times, see the logs of Ray"


def _outcomes(images: Sequence[ImageFile], work: Work, pool: Pool) -> Iterator[Outcome | str]:
    """Yield outcomes, and the reason if a worker ends the run."""
    if not images:
        return
    _configure()
    count = _block_count(len(images), pool.workers, work.concurrency)
    rows = [{"image": image_to_text(image)} for image in images]
    with warnings.catch_warnings():
        # The retries of actors have no other parameters yet.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        outcomes = ray.data.from_items(rows, override_num_blocks=count).map_batches(
            Worker,
            fn_constructor_args=(work,),
            batch_size=None,
            batch_format="numpy",
            num_cpus=pool.cpus,
            compute=ray.data.ActorPoolStrategy(
                size=pool.workers,
                # No block waits for a worker while another one is idle.
                max_tasks_in_flight_per_actor=BLOCKS,
                max_concurrent_calls_per_actor=BLOCKS,
                enable_true_multi_threading=True,
            ),
            max_restarts=RESTARTS,
            # Not counted: each attempt to reach a node that has just ended is one.
            max_task_retries=-1,
        )
    blocks = iter(outcomes.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"))
    with native_messages_discarded():
        first = next(blocks, None)
    for block in [] if first is None else itertools.chain([first], blocks):
        for text in block["outcome"]:
            yield text_to_outcome(str(text))


def _configure() -> None:
    """Silence Ray Data, and let it skip blocks that end their workers again and again."""
    configure_logging()
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.target_max_block_size = _BLOCK_BYTES
    context.max_errored_blocks = -1


def _block_count(images: int, workers: int, concurrency: int) -> int:
    """Return the number of blocks: small, so that all workers end at the same time."""
    size = images // (workers * BLOCKS * _MIN_ROUNDS)
    # At least as many images as are under way, so that two blocks keep a worker busy.
    size = max(min(size, _MAX_BLOCK), concurrency, -(-images // _MAX_BLOCKS))
    return -(-images // size)


def _line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
