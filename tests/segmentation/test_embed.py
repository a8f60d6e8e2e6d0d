"""What many callers at once cannot be made to meet on purpose through a socket."""

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
    """Workers that hold the first reading of a header back until ``go_on``."""

    def __init__(self) -> None:
        super().__init__(2)
        self.reading, self.go_on = asyncio.Event(), asyncio.Event()

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if function is images.probe and not self.reading.is_set():
            self.reading.set()
            await self.go_on.wait()
        return await super().run(context, function, *args, **kwargs)


async def test_who_met_a_miss_before_another_published_does_not_encode_again() -> None:
    engine, workers = FakeEngine(), SlowHeader()
    use_cases = UseCases(engine, workers)

    async def embed() -> bool:
        async with use_cases.embeddings.lease(blank(), "", RequestContext()) as lease:
            return lease.cached

    late = asyncio.create_task(embed())
    await workers.reading.wait()
    first = await embed()
    workers.go_on.set()

    assert (first, await late) == (False, True)
    assert engine.counts["encode_begun"] == 1
    assert (use_cases.store.stats().hits, use_cases.store.stats().misses) == (0, 2)
    await use_cases.aclose()


async def test_what_a_prefetch_joins_later_is_no_fact_of_its_call() -> None:
    engine, go, call = FakeEngine(), asyncio.Event(), RequestContext()
    use_cases = UseCases(engine)
    engine.hold(go)
    embed = use_cases.embeddings.lease(blank(), "", RequestContext())
    leading = asyncio.create_task(embed.__aenter__())
    await until(lambda: engine.counts["encode_begun"] == 1)
    await use_cases.embeddings.prefetch(blank().image, "", call)
    go.set()
    await leading
    await until(lambda: use_cases.embeddings.prefetches.pending == 0)
    await embed.__aexit__(None, None, None)
    await use_cases.aclose()

    assert engine.counts["encode_begun"] == 1
    assert call.facts.cache == "pending"
