"""Races between concurrent Embed calls that cannot be provoked through a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from samserve import images
from samserve.context import RequestContext
from samserve.engines.fake import FakeEngine
from samserve.scheduling.thread_pools import Workers

from tests.segmentation.use_cases import UseCases, blank
from tests.support.waiting import until


class SlowHeader(Workers):
    """Workers that delay the first read of an image header until ``resume`` is set."""

    def __init__(self) -> None:
        super().__init__(2)
        self.reading, self.resume = asyncio.Event(), asyncio.Event()

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if function is images.probe and not self.reading.is_set():
            self.reading.set()
            await self.resume.wait()
        return await super().run(context, function, *args, **kwargs)


async def test_call_with_an_earlier_cache_miss_uses_the_embedding_published_meanwhile() -> None:
    engine, workers = FakeEngine(), SlowHeader()
    use_cases = UseCases(engine, workers)

    async def embed() -> bool:
        async with use_cases.embeddings.lease(blank(), "", RequestContext()) as lease:
            return lease.cached

    late = asyncio.create_task(embed())
    await workers.reading.wait()
    first = await embed()
    workers.resume.set()

    assert (first, await late) == (False, True)
    assert engine.counts["encode_begun"] == 1
    assert (use_cases.cache.stats().hits, use_cases.cache.stats().misses) == (0, 2)
    await use_cases.aclose()


async def test_cache_result_of_a_prefetch_call_stays_pending_after_it_joins() -> None:
    engine, resume, call = FakeEngine(), asyncio.Event(), RequestContext()
    use_cases = UseCases(engine)
    engine.hold(resume)
    embed = use_cases.embeddings.lease(blank(), "", RequestContext())
    leading = asyncio.create_task(embed.__aenter__())
    await until(lambda: engine.counts["encode_begun"] == 1)
    await use_cases.embeddings.prefetch(blank().image, "", call)
    resume.set()
    await leading
    await until(lambda: use_cases.embeddings.prefetches.pending == 0)
    await embed.__aexit__(None, None, None)
    await use_cases.aclose()

    assert engine.counts["encode_begun"] == 1
    assert call.facts.cache == "pending"
