"""What many callers at once cannot be made to meet on purpose through a socket."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
from samserve import images
from samserve.context import Priority, RequestContext
from samserve.engines.fake import FakeEngine
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.embed import ByImage, Embedder
from samserve.stores.local.store import MemoryStore
from samserve.types import RawImage, Size


class SlowLook(Workers):
    """Workers who hold the first look at a picture back until they are told to go on."""

    def __init__(self) -> None:
        super().__init__(2)
        self.looking, self.go_on = asyncio.Event(), asyncio.Event()

    async def run(
        self, priority: Priority, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        if function is images.probe and not self.looking.is_set():
            self.looking.set()
            await self.go_on.wait()
        return await super().run(priority, function, *args, **kwargs)


async def test_who_met_a_miss_before_another_published_does_not_encode_again() -> None:
    engine, store, workers = FakeEngine(), MemoryStore(64 << 20, ttl_s=60), SlowLook()
    embedder = Embedder(engine, store, workers, images.ImageLimits(10**6, 10**4), 60)
    picture = np.zeros((20, 30, 3), np.uint8)
    source = ByImage(RawImage(picture.tobytes(), Size(20, 30)))

    async def embed() -> bool:
        async with embedder.lease(source, "", RequestContext()) as leased:
            return leased.cached

    late = asyncio.create_task(embed())
    await workers.looking.wait()
    first = await embed()
    workers.go_on.set()

    assert (first, await late) == (False, True)
    assert engine.counts["encode_begun"] == 1
    assert (store.stats().hits, store.stats().misses) == (0, 2)
    workers.close()
