"""From settings to a store: memory alone, or memory before the shared cache."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial

from samserve.memory.anonymous import Allocate
from samserve.settings import Settings
from samserve.stores.base import EmbeddingStore
from samserve.stores.local.store import MemoryStore
from samserve.stores.shared.presence import SharedPresence
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.credentials import Credentials, open_cache_credentials
from samserve.stores.shared.store import SharedCache
from samserve.stores.tiered import TieredStore
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics import Metrics
from samserve.types import ModelInfo

Quota = Callable[[str], int | None]


def cache_credentials(settings: Settings) -> ReloadableFile[Credentials] | None:
    """Read the files for the shared cache, None without one.  Raises `Misconfigured`."""
    return open_cache_credentials(settings.cache) if settings.cache.nodes else None


@asynccontextmanager
async def open_store(
    settings: Settings,
    allocate: Allocate,
    models: Callable[[], Mapping[str, ModelInfo]],
    quota: Quota,
    credentials: ReloadableFile[Credentials] | None,
    metrics: Metrics,
) -> AsyncIterator[EmbeddingStore]:
    """Keep a store open while the block runs, and look for a shared cache that is away.

    *allocate* maps the memory, *models* returns those that are served now, and *quota* the bytes of
    memory that a tenant may hold.
    """
    store = settings.store
    memory = partial(MemoryStore, store.capacity_bytes, store.ttl_s, quota=quota, allocate=allocate)
    if credentials is None:
        async with aclosing(memory()) as alone:
            yield alone
        return
    copies = SharedPresence(settings.cache.check_s, settings.cache.unconfirmed_s)
    first = memory(forgotten=copies.forget)
    async with ClusterClient(settings.cache, credentials, metrics.cache).running() as servers:
        metrics.cache.register_nodes(lambda: servers.health().nodes)
        cache = SharedCache(servers, settings.cache, metrics.cache)
        tiers = TieredStore(first, copies, cache, models, store.ttl_s)
        async with aclosing(tiers), cache.listening(first.drop, copies.invalidate_all):
            yield tiers
