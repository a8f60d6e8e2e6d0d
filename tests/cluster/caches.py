"""Tiered caches over a cluster, as gateways use them, without the gateways."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.cache.local.cache import LocalCache
from samserve.cache.shared.cache import SharedCache
from samserve.cache.shared.presence import SharedPresence
from samserve.cache.shared.redis.cluster import ClusterClient
from samserve.cache.shared.redis.credentials import Credentials, open_cache_credentials
from samserve.cache.shared.redis.node import Node
from samserve.cache.tiered import TieredCache
from samserve.engines.fake import MODEL
from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.settings import SharedCacheSettings
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, EmbeddingFacts, EmbeddingKey, ModelInfo, Size

from harness.cluster.node import HOST

FACTS = EmbeddingFacts.of(Size(30, 40), MODEL)
SLOT = MODEL.embedding_bytes
# Much longer than any operation takes here: a busy machine must not cause an outage.
LONG_TIMEOUTS: dict[str, object] = {
    "timeout_s": 20.0,
    "connect_timeout_s": 20.0,
    "durability_timeout_s": 20.0,
}


@dataclass
class GatewayCache:
    """The cache of one gateway, and its parts."""

    cache: TieredCache
    local: LocalCache
    presence: SharedPresence
    shared: SharedCache
    client: ClusterClient
    metrics: Metrics
    subscription: AsyncExitStack

    async def put(self, key: EmbeddingKey, value: float = 1.0) -> Embedding:
        async with self.cache.publish(await self.write(key, value)) as embedding:
            return embedding

    async def write(self, key: EmbeddingKey, value: float = 1.0) -> Slot:
        slot = await self.cache.reserve(key, FACTS, MODEL.embedding)
        slot.tensors["image_embedding"][...] = value
        return slot

    async def get(self, key: EmbeddingKey, *, renew: bool = False) -> float | None:
        try:
            async with self.cache.lease(key, renew=renew) as embedding:
                return float(embedding.tensors["image_embedding"][255, 63, 63])
        except EmbeddingNotFound:
            return None

    def count(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"samserve_cache_{name}_total", labels) or 0.0


@asynccontextmanager
async def open_cache(
    nodes: str,
    *,
    capacity: int = 16 * SLOT,
    ttl_s: float = 60.0,
    models: dict[str, ModelInfo] | None = None,
    now: Callable[[], float] = time.monotonic,
    **settings: object,
) -> AsyncIterator[GatewayCache]:
    """Open a cache with *settings* of the shared tier, by default `LONG_TIMEOUTS`.

    *now* is the clock of `SharedPresence`, which decides when the shared tier is checked again.
    """
    chosen = SharedCacheSettings(nodes=nodes, **LONG_TIMEOUTS | settings)  # type: ignore[arg-type]
    metrics = Metrics(CollectorRegistry())
    client = ClusterClient(chosen, open_cache_credentials(chosen), metrics.cache)
    shared = SharedCache(client, chosen, metrics.cache)
    presence = SharedPresence(chosen.revalidate_interval_s, chosen.stale_if_error_s, now)
    local = LocalCache(capacity, ttl_s, on_removed=presence.remove)
    served = models or {MODEL.name: MODEL}
    cache = TieredCache(local, presence, shared, lambda: served, ttl_s)
    metrics.cache.register_stats(cache.stats)
    async with client.running(), aclosing(cache), AsyncExitStack() as subscription:
        deletions = shared.subscribed(local.remove, presence.invalidate_all)
        await subscription.enter_async_context(deletions)
        yield GatewayCache(cache, local, presence, shared, client, metrics, subscription)


def node_client(port: int, credentials: Credentials | None = None, **settings: object) -> Node:
    """Return a gateway's client of one node of a cluster."""
    fixed = credentials or Credentials()
    chosen = SharedCacheSettings(**LONG_TIMEOUTS | settings)  # type: ignore[arg-type]
    return Node((HOST, port), lambda: fixed, chosen, Metrics(CollectorRegistry()).cache)


def key(name: str, tenant: str = "default") -> EmbeddingKey:
    return EmbeddingKey(tenant, name)


def tensors(value: float) -> dict[str, np.ndarray]:
    return {spec.name: np.full(spec.shape, value, spec.dtype) for spec in MODEL.embedding}
