"""Background encodes (Embed with prefetch): bounded in number and bytes; failures are logged."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from functools import partial
from typing import Any, TypeAlias

import structlog

from samserve.context import Priority
from samserve.errors import SamserveError
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.segmentation.encode import EncodeJob
from samserve.types import EmbeddingKey

Work: TypeAlias = Callable[[EncodeJob], Coroutine[Any, Any, None]]

# Enough for an engine that batches.  A queued job can still run at once when a call needs it.
_CONCURRENCY = 4


class PrefetchQueue:
    """Runs jobs in the background with limited concurrency; `aclose` cancels unfinished jobs.

    *jobs* limits how many wait or run, *nbytes* the total bytes of their images.  *on_end* is
    called with the outcome of each: ``ok``, ``cancelled`` or ``failed``.
    """

    def __init__(
        self,
        jobs: TenantLimit,
        nbytes: TenantLimit,
        on_end: Callable[[str], None],
    ) -> None:
        self._jobs = jobs
        self._nbytes = nbytes
        self._on_end = on_end
        self._slots = FairSemaphore(_CONCURRENCY)
        self._tasks: set[asyncio.Task[None]] = set()
        # A key that is requested again while it is pending is encoded once.
        self._pending: dict[EmbeddingKey, EncodeJob] = {}
        self._log = structlog.get_logger("samserve.prefetch")

    @property
    def pending(self) -> int:
        """Number of jobs that wait or run."""
        return len(self._tasks)

    def start(self, job: EncodeJob, work: Work) -> None:
        """Start *work* on a job, unless one for its key is pending.  Raises `Overloaded`."""
        if job.key in self._pending:
            return
        with ExitStack() as stack:
            stack.enter_context(self._jobs.acquire(job.key.tenant))
            stack.enter_context(self._nbytes.acquire(job.key.tenant, len(job.image.data)))
            task = asyncio.create_task(self._run(job, work))
            task.add_done_callback(partial(self._finish, job, stack.pop_all()))
        self._tasks.add(task)
        self._pending[job.key] = job

    def job(self, key: EmbeddingKey) -> EncodeJob | None:
        """Return the pending job for *key*, if any."""
        return self._pending.get(key)

    def detach(self, key: EmbeddingKey) -> None:
        """Allow another job for *key* to start although one is pending."""
        self._pending.pop(key, None)

    async def aclose(self) -> None:
        """Cancel unfinished jobs."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: EncodeJob, work: Work) -> None:
        async with self._slots.acquire_for(job.key.tenant, Priority.BULK):
            await work(job)

    def _finish(self, job: EncodeJob, permits: ExitStack, task: asyncio.Task[None]) -> None:
        permits.close()
        self._tasks.discard(task)
        if self._pending.get(job.key) is job:
            del self._pending[job.key]
        error = None if task.cancelled() else task.exception()
        self._on_end("cancelled" if task.cancelled() else "failed" if error is not None else "ok")
        if isinstance(error, SamserveError):
            self._log.info("prefetch failed", reason=error.reason)
        elif error is not None:
            self._log.error("prefetch failed", exc_info=error)
