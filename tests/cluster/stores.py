"""Stores over one cluster, as two gateways have them, without the gateways."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.engines.fake import MODEL
from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.settings import CacheSettings
from samserve.stores.local.store import MemoryStore
from samserve.stores.shared.presence import Copies
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.credentials import open_access
from samserve.stores.shared.store import SharedCache
from samserve.stores.tiered import TieredStore
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, ModelInfo, Size

FACTS = EmbeddingFacts.of(Size(30, 40), MODEL)
SLOT = MODEL.embedding_bytes
# Much longer than anything here takes: a machine that has other things to do is no outage.
PATIENT: dict[str, object] = {"timeout_s": 20.0, "connect_s": 20.0, "durable_s": 20.0}


@dataclass
class Gateway:
    """One gateway's store, and what it is made of."""

    store: TieredStore
    memory: MemoryStore
    copies: Copies
    cache: SharedCache
    client: ClusterClient
    metrics: Metrics

    async def put(self, key: EmbeddingKey, value: float = 1.0) -> Embedding:
        async with self.store.publish(await self.write(key, value)) as embedding:
            return embedding

    async def write(self, key: EmbeddingKey, value: float = 1.0) -> Slot:
        slot = await self.store.reserve(key, FACTS, MODEL.embedding)
        slot.tensors["image_embedding"][...] = value
        return slot

    async def get(self, key: EmbeddingKey, *, renew: bool = False) -> float | None:
        try:
            async with self.store.lease(key, renew=renew) as embedding:
                return float(embedding.tensors["image_embedding"][255, 63, 63])
        except EmbeddingNotFound:
            return None

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"samserve_cache_{name}_total", labels) or 0.0


@asynccontextmanager
async def store_over(
    nodes: str,
    *,
    capacity: int = 16 * SLOT,
    ttl_s: float = 60.0,
    models: dict[str, ModelInfo] | None = None,
    now: Callable[[], float] = time.monotonic,
    **cache: object,
) -> AsyncIterator[Gateway]:
    """Open a store; *cache* are settings, by default patient ones: the machine may be busy.

    *now* is the clock by which the store looks again at what it has seen.
    """
    settings = CacheSettings(nodes=nodes, **PATIENT | cache)  # type: ignore[arg-type]
    metrics = Metrics(CollectorRegistry())
    client = ClusterClient(settings, open_access(settings), metrics.cache)
    shared = SharedCache(client, settings, metrics.cache)
    await shared.open()
    copies = Copies(settings.check_s, settings.unconfirmed_s, now)
    memory = MemoryStore(capacity, ttl_s, forgotten=copies.forget)
    served = models or {MODEL.name: MODEL}
    store = TieredStore(memory, copies, shared, lambda: served, ttl_s)
    metrics.cache.watch_store(store.stats)
    async with aclosing(store):
        yield Gateway(store, memory, copies, shared, client, metrics)


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


def tensors(value: float) -> dict[str, np.ndarray]:
    return {spec.name: np.full(spec.shape, value, spec.dtype) for spec in MODEL.embedding}
