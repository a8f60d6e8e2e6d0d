"""Opens the embedding cache: the local tier alone, or both tiers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial

from samserve.cache.base import EmbeddingCache
from samserve.cache.local.cache import LocalCache
from samserve.cache.shared.cache import SharedCache
from samserve.cache.shared.presence import SharedPresence
from samserve.cache.shared.redis.cluster import ClusterClient
from samserve.cache.shared.redis.credentials import Credentials, open_cache_credentials
from samserve.cache.sizing import check_sizes
from samserve.cache.tiered import TieredCache
from samserve.memory.anonymous import Allocate
from samserve.settings import Settings
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics import Metrics
from samserve.types import ModelInfo

Quota = Callable[[str], int | None]


def cache_credentials(settings: Settings) -> ReloadableFile[Credentials] | None:
    """Read the credential files of the shared tier, None without one.  Raises `Misconfigured`."""
    return open_cache_credentials(settings.cache.shared) if settings.cache.shared.nodes else None


@asynccontextmanager
async def open_cache(
    settings: Settings,
    allocate: Allocate,
    models: Callable[[], Mapping[str, ModelInfo]],
    quota: Quota,
    credentials: ReloadableFile[Credentials] | None,
    metrics: Metrics,
) -> AsyncIterator[EmbeddingCache]:
    """Open the cache while the block runs, and keep reconnecting to unavailable nodes.

    *allocate* maps the memory, *models* returns the models that are served now, and *quota* the
    bytes of the local tier that a tenant may use.  Raises `Misconfigured` if an embedding of a
    served model does not fit.
    """
    check_sizes(settings.cache, models())
    ttl_s, shared_settings = settings.cache.ttl_s, settings.cache.shared
    new_local = partial(
        LocalCache, settings.cache.local.capacity_bytes, ttl_s, quota=quota, allocate=allocate
    )
    if credentials is None:
        async with aclosing(new_local()) as local_only:
            yield local_only
        return
    presence = SharedPresence(
        shared_settings.revalidate_interval_s, shared_settings.stale_if_error_s
    )
    local = new_local(on_removed=presence.remove)
    async with ClusterClient(shared_settings, credentials, metrics.cache).running() as servers:
        metrics.cache.register_nodes(lambda: servers.health().nodes)
        shared = SharedCache(servers, shared_settings, metrics.cache)
        tiered = TieredCache(local, presence, shared, models, ttl_s)
        async with (
            aclosing(tiered),
            shared.subscribed(on_deleted=local.remove, on_gap=presence.invalidate_all),
        ):
            yield tiered
