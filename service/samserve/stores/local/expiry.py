"""Freeing what has expired, so that it does not wait in memory for somebody to need the room."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from samserve.stores.base import EmbeddingStore

_INTERVAL_S = 1.0


@asynccontextmanager
async def expiring(store: EmbeddingStore) -> AsyncIterator[None]:
    """Free what expires while the block runs."""
    task = asyncio.create_task(_expire(store))
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _expire(store: EmbeddingStore) -> None:
    while True:
        await asyncio.sleep(_INTERVAL_S)
        for _ in iter(store.expire, 0):
            await asyncio.sleep(0)  # many may expire at once; others get their turn between
