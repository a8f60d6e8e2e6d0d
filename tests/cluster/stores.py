"""Stores over one cluster, as two gateways have them, without the gateways."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.engines.fake import MODEL
from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.settings import CacheSettings
from samserve.stores.local.store import MemoryStore
from samserve.stores.shared.presence import SharedPresence
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.credentials import Credentials, open_cache_credentials
from samserve.stores.shared.redis.node import Node
from samserve.stores.shared.store import SharedCache
from samserve.stores.tiered import TieredStore
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, ModelInfo, Size

from harness.cluster.node import HOST

FACTS = EmbeddingFacts.of(Size(30, 40), MODEL)
SLOT = MODEL.embedding_bytes
# Much longer than anything here takes: a machine that has other things to do is no outage.
PATIENT: dict[str, object] = {"timeout_s": 20.0, "connect_s": 20.0, "durable_s": 20.0}


@dataclass
class Gateway:
    """One gateway's store, and what it is made of."""

    store: TieredStore
    memory: MemoryStore
    copies: SharedPresence
    cache: SharedCache
    client: ClusterClient
    metrics: Metrics
    listening: AsyncExitStack

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
    client = ClusterClient(settings, open_cache_credentials(settings), metrics.cache)
    shared = SharedCache(client, settings, metrics.cache)
    copies = SharedPresence(settings.check_s, settings.unconfirmed_s, now)
    memory = MemoryStore(capacity, ttl_s, forgotten=copies.forget)
    served = models or {MODEL.name: MODEL}
    store = TieredStore(memory, copies, shared, lambda: served, ttl_s)
    metrics.cache.register_store(store.stats)
    async with client.running(), aclosing(store), AsyncExitStack() as listening:
        await listening.enter_async_context(shared.listening(memory.drop, copies.invalidate_all))
        yield Gateway(store, memory, copies, shared, client, metrics, listening)


def node_at(port: int, credentials: Credentials | None = None, **settings: object) -> Node:
    """One node of a cluster, as a gateway has it."""
    used = credentials or Credentials()
    chosen = CacheSettings(**PATIENT | settings)  # type: ignore[arg-type]
    return Node((HOST, port), lambda: used, chosen, Metrics(CollectorRegistry()).cache)


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


def tensors(value: float) -> dict[str, np.ndarray]:
    return {spec.name: np.full(spec.shape, value, spec.dtype) for spec in MODEL.embedding}
