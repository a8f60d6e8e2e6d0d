"""Engines on a Triton of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.metrics import Metrics
from samserve.settings import TritonSettings
from samserve.stores.base import Slot
from samserve.stores.memory import MemoryStore
from samserve.types import EmbeddingFacts, EmbeddingKey, Size

from tests import pictures

SIDE = 1024


@asynccontextmanager
async def opened(
    url: str, *, capacity_bytes: int = 64 << 20, default_model: str = "", **settings: Any
) -> AsyncIterator[tuple[TritonEngine, MemoryStore]]:
    """Open an engine and a store in the memory that it allocates."""
    engine = TritonEngine(
        TritonSettings(**{"url": url, "shared_memory": "required", **settings}),
        Metrics(CollectorRegistry()),
        default_model,
    )
    await engine.open()
    store = MemoryStore(capacity_bytes, ttl_s=600, allocate=engine.allocate)
    try:
        yield engine, store
    finally:
        await store.aclose()
        await engine.aclose()


def picture(seed: int = 0, height: int = SIDE, width: int = SIDE) -> EncoderInput:
    """A random picture in the model frame."""
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:height, :width] = pictures.noise(height, width, seed)
    return EncoderInput(pixels, Size(height, width))


def clicks(count: int = 1, seed: int = 0, points: int = 1, masks: int = 0) -> PromptBatch:
    """Random clicks of *points* points each, with the padding point of the reference."""
    numbers = np.random.default_rng(seed)
    coords = np.zeros((count, points + 1, 2), dtype=np.float32)
    coords[:, :points] = numbers.random((count, points, 2)) * SIDE
    labels = np.full((count, points + 1), -1, dtype=np.float32)
    labels[:, :points] = numbers.integers(0, 2, (count, points))
    labels[:, 0] = 1
    mask = numbers.normal(scale=4, size=(masks, 256, 256)).astype(np.float32)
    return PromptBatch(coords, labels, mask)


async def reserved(engine: TritonEngine, store: MemoryStore, name: str, model: str = "") -> Slot:
    """Take a slot for an embedding of the model, the default one if none is named."""
    info = engine.models[model or next(iter(engine.models))]
    facts = EmbeddingFacts(Size(SIDE, SIDE), info.name, info.digest)
    return await store.reserve(EmbeddingKey("t", name), facts, info.embedding)


async def eventually(condition: Callable[[], Any], within_s: float = 30.0) -> None:
    """Wait until something is so."""
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.01)
