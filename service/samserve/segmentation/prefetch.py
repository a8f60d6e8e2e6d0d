"""Encodes that no call waits for: bounded in number and in bytes, and logged when they fail."""

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

# Enough for an engine that batches; what waits here can still be made at once for a call.
_AT_A_TIME = 4


class PrefetchQueue:
    """Runs jobs in the background, some at a time; `aclose` cancels what is not done.

    At most what *jobs* allows wait or run, with at most as many bytes of images between them as
    *nbytes* does.  *ended* is called with how each ends: ``ok``, ``cancelled`` or ``failed``.
    """

    def __init__(
        self,
        jobs: TenantLimit,
        nbytes: TenantLimit,
        ended: Callable[[str], None],
    ) -> None:
        self._jobs = jobs
        self._nbytes = nbytes
        self._ended = ended
        self._turns = FairSemaphore(_AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        # What is requested again while it is pending is begun once.
        self._pending: dict[EmbeddingKey, EncodeJob] = {}
        self._log = structlog.get_logger("samserve.prefetch")

    @property
    def pending(self) -> int:
        """Jobs that wait or run."""
        return len(self._tasks)

    def start(self, job: EncodeJob, work: Work) -> None:
        """Do *work* on a job, unless one for its key is pending.  Raises `Overloaded`."""
        if job.key in self._pending:
            return
        with ExitStack() as stack:
            stack.enter_context(self._jobs.hold(job.key.tenant))
            stack.enter_context(self._nbytes.hold(job.key.tenant, len(job.image.data)))
            task = asyncio.create_task(self._run(job, work))
            task.add_done_callback(partial(self._end, job, stack.pop_all()))
        self._tasks.add(task)
        self._pending[job.key] = job

    def job(self, key: EmbeddingKey) -> EncodeJob | None:
        """Find the job that is pending for *key*."""
        return self._pending.get(key)

    def forget(self, key: EmbeddingKey) -> None:
        """Let a job for *key* be started again although one is pending."""
        self._pending.pop(key, None)

    async def aclose(self) -> None:
        """Cancel what is not done."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, job: EncodeJob, work: Work) -> None:
        async with self._turns.hold_for(job.key.tenant, Priority.BULK):
            await work(job)

    def _end(self, job: EncodeJob, held: ExitStack, task: asyncio.Task[None]) -> None:
        held.close()
        self._tasks.discard(task)
        if self._pending.get(job.key) is job:
            del self._pending[job.key]
        error = None if task.cancelled() else task.exception()
        self._ended("cancelled" if task.cancelled() else "failed" if error is not None else "ok")
        if isinstance(error, SamserveError):
            self._log.info("a prefetch failed", reason=error.reason)
        elif error is not None:
            self._log.error("a prefetch failed", exc_info=error)
