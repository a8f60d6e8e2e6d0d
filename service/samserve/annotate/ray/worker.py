"""The actor that annotates blocks of images: an event loop in a thread, with open gateways."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack

from samserve.annotate import pipeline
from samserve.annotate.gateways import Gateways
from samserve.annotate.pipeline import Outcome
from samserve.annotate.ray.work import (
    Work,
    aborted_to_text,
    outcome_to_text,
    text_to_image,
)
from samserve.annotate.source import ImageFile
from samserve.client import Catalog, SamserveClientError
from samserve.errors import Misconfigured, SamserveError

BLOCKS = 2
"""Blocks under way in a worker: while one ends, the images of the next keep the gateways busy."""


class Worker:
    """Called by Ray with one block of images at a time in each of `BLOCKS` threads."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="annotate", daemon=True).start()
        # Created by the first block, on the event loop.
        self._gateways: asyncio.Task[Gateways] | None = None
        self._under_way = asyncio.Semaphore(work.concurrency)
        # Closed with the process: Ray kills actors.
        self._stack = AsyncExitStack()

    def __call__(self, block: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
        """Annotate the images of a block, and return their outcomes, in any order."""
        images = [text_to_image(str(text)) for text in block["image"]]
        done = asyncio.run_coroutine_threadsafe(self._annotate(images), self._loop)
        return {"outcome": done.result()}

    async def _annotate(self, images: Sequence[ImageFile]) -> list[str]:
        if self._gateways is None:
            self._gateways = asyncio.create_task(self._open())
        try:
            gateways = await asyncio.shield(self._gateways)
        except (SamserveError, SamserveClientError) as error:
            return [aborted_to_text(pipeline.reason(error))]
        outcomes: list[str] = []

        async def process(image: ImageFile) -> Outcome:
            async with self._under_way:
                return await self._work.job.process(gateways, image)

        job = pipeline.Job(process, lambda image: image.name, self._work.concurrency)
        summary = await pipeline.run(
            images, job, lambda outcome: outcomes.append(outcome_to_text(outcome))
        )
        return outcomes + ([aborted_to_text(summary.aborted)] if summary.aborted else [])

    async def _open(self) -> Gateways:
        gateways = await self._stack.enter_async_context(self._work.servers.open())
        _check(await gateways.models(), self._work)
        return gateways


def _check(catalog: Catalog, work: Work) -> None:
    """Raise `Misconfigured` unless the same weights are served here."""
    served = {model.name: model.digest for model in catalog.models}
    if served.get(work.job.model) != work.job.digest:
        raise Misconfigured(
            f"a worker is served other weights of {work.job.model!r} than the command: its node "
            "has another model repository"
        )
