"""Diagnosis of the shared tier, with the gateway's own client."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from samserve.cache.shared.cache import SharedCache
from samserve.cache.shared.redis.cluster import ClusterClient
from samserve.cache.shared.redis.connection import slot_of
from samserve.cache.shared.redis.credentials import Credentials
from samserve.cache.shared.redis.slots import Address, SlotMap
from samserve.errors import CacheUnavailable
from samserve.settings import SharedCacheSettings
from samserve.system.addresses import join
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics.cache import CacheMetrics
from samserve.types import EmbeddingKey

# Time to live of the test values.
_TTL_S = 1.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The state of the shared tier.

    ``nodes`` maps each node to the reason why it does not respond, empty if it does.
    ``topology_error`` is why no node returned the topology, empty if one did.
    ``durability_errors`` maps each responding master to the reason why embeddings are not durable
    there, empty if they are.
    """

    nodes: Mapping[str, str]
    topology_error: str
    durability_errors: Mapping[str, str]


async def diagnose(
    settings: SharedCacheSettings, credentials: ReloadableFile[Credentials], metrics: CacheMetrics
) -> Diagnosis:
    """Probe every node, and write an embedding to every master as a durable Embed does."""
    async with ClusterClient(settings, credentials, metrics).running() as servers:
        nodes = servers.nodes
        reasons = await asyncio.gather(*(node.probe() for node in nodes))
        by_node = {node.address: reason for node, reason in zip(nodes, reasons, strict=True)}
        members = servers.health().nodes
        masters = [each for each in sorted(servers.slots.masters) if not by_node[join(*each)]]
        cache = SharedCache(servers, settings, metrics)
        errors = await asyncio.gather(
            *(_durability_error(cache, servers.slots, each) for each in masters)
        )
    return Diagnosis(
        # A node of the settings that is no member may be one under another name.
        {node: reason for node, reason in sorted(by_node.items()) if reason or node in members},
        servers.topology_error,
        dict(zip(itertools.starmap(join, masters), errors, strict=True)),
    )


async def _durability_error(cache: SharedCache, slots: SlotMap, master: Address) -> str:
    """Return why an embedding that is written to *master* is not durable; empty if it is."""
    keys = (EmbeddingKey("default", f"diagnosis-{secrets.token_hex(8)}") for _ in itertools.count())
    key = next(key for key in keys if slots.owners[slot_of(cache.name(key))] == master)
    try:
        await cache.put(key, b"", _TTL_S, durable=True)
    except CacheUnavailable as error:
        return error.message
    return ""
