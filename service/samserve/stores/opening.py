"""From settings to a store: memory alone, or memory before the shared cache."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from samserve.engines.base import Engine
from samserve.settings import Settings
from samserve.stores.base import EmbeddingStore
from samserve.stores.local.store import MemoryStore
from samserve.stores.shared.presence import Copies
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.credentials import Access, open_access
from samserve.stores.shared.store import SharedCache
from samserve.stores.tiered import TieredStore
from samserve.system.reloading import Watched
from samserve.telemetry.metrics import Metrics

Quota = Callable[[str], int | None]


def cache_credentials(settings: Settings) -> Watched[Access] | None:
    """Read the files for the shared cache, None without one.  Raises `Misconfigured`."""
    return open_access(settings.cache) if settings.cache.nodes else None


async def open_store(
    settings: Settings,
    engine: Engine,
    quota: Quota,
    access: Watched[Access] | None,
    metrics: Metrics,
) -> EmbeddingStore:
    """Open the store; a shared cache that is away is looked for as long as the store is open.

    *quota* gives the bytes of memory that a tenant may hold.
    """
    store = settings.store
    memory = partial(
        MemoryStore, store.capacity_bytes, store.ttl_s, quota=quota, allocate=engine.allocate
    )
    if access is None:
        return memory()
    client = ClusterClient(settings.cache, access, metrics.cache)
    metrics.cache.watch_nodes(client.health)
    cache = SharedCache(client, settings.cache, metrics.cache)
    await cache.open()
    copies = Copies(settings.cache.check_s, settings.cache.unconfirmed_s)
    return TieredStore(
        memory(forgotten=copies.forget), copies, cache, lambda: engine.models, store.ttl_s
    )
