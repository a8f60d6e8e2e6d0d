"""Frees the memory of expired embeddings in the background."""

from __future__ import annotations

import asyncio
from contextlib import AbstractAsyncContextManager

from samserve.cache.base import EmbeddingCache
from samserve.system.background import periodic

_INTERVAL_S = 1.0


def expiring(cache: EmbeddingCache) -> AbstractAsyncContextManager[None]:
    """Free expired embeddings periodically while the block runs."""

    async def expire() -> None:
        for _ in iter(cache.expire, 0):
            await asyncio.sleep(0)  # many may expire at once; let other tasks run in between

    return periodic(expire, _INTERVAL_S, "freeing expired embeddings failed")
