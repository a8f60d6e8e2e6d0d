"""Whether the shared cache can be used, tried with the gateway's own client."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

from samserve.errors import StoreUnavailable
from samserve.settings import CacheSettings
from samserve.stores.shared.redis.cluster import ClusterClient
from samserve.stores.shared.redis.connection import slot_of
from samserve.stores.shared.redis.credentials import Credentials
from samserve.stores.shared.redis.slots import Address, SlotMap
from samserve.stores.shared.store import SharedCache
from samserve.system.addresses import join
from samserve.system.reloading import ReloadableFile
from samserve.telemetry.metrics.store import CacheMetrics
from samserve.types import EmbeddingKey

# What is written to try it is gone after that.
_TTL_S = 1.0


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was found: ``nodes`` are the nodes and why each does not answer, empty if it does.

    ``no_map`` is why none of them told who owns what, empty if one did.  ``not_durable`` are the
    masters that answer, and what durable Embeds would lack there, empty if nothing.
    """

    nodes: Mapping[str, str]
    no_map: str
    not_durable: Mapping[str, str]


async def diagnose(
    settings: CacheSettings, credentials: ReloadableFile[Credentials], metrics: CacheMetrics
) -> Diagnosis:
    """Ask every node, and write an embedding to every master as a durable Embed does."""
    async with ClusterClient(settings, credentials, metrics).running() as servers:
        nodes = servers.nodes
        reasons = await asyncio.gather(*(node.probe() for node in nodes))
        found = {node.address: reason for node, reason in zip(nodes, reasons, strict=True)}
        members = servers.health().nodes
        masters = [each for each in sorted(servers.slots.masters) if not found[join(*each)]]
        cache = SharedCache(servers, settings, metrics)
        lacks = await asyncio.gather(*(_lack(cache, servers.slots, each) for each in masters))
    return Diagnosis(
        # A node of the settings that is no member may be one by another name.
        {node: reason for node, reason in sorted(found.items()) if reason or node in members},
        servers.no_map,
        dict(zip(itertools.starmap(join, masters), lacks, strict=True)),
    )


async def _lack(cache: SharedCache, slots: SlotMap, master: Address) -> str:
    """Return what an embedding that is written to *master* lacks of being durable."""
    keys = (EmbeddingKey("default", f"diagnosis-{secrets.token_hex(8)}") for _ in itertools.count())
    key = next(key for key in keys if slots.owners[slot_of(cache.name(key))] == master)
    try:
        await cache.put(key, b"", _TTL_S, durable=True)
    except StoreUnavailable as error:
        return error.message
    return ""
