"""The embedding cache: hit ratio, both tiers, and the nodes of the shared tier."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, ORANGE, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.variables import (
    GATEWAY,
    POD,
    REDIS,
    SCOPE,
    SCOPE_VARIABLES,
    quantile,
    rate,
    ratio,
)
from monitoring.objectives import THRESHOLDS
from monitoring.recording import HIT_RATIO


def page() -> Dashboard:
    """Return the dashboard."""
    return Dashboard(
        name="cache",
        title="samserve / Cache",
        description="""Hit ratio of the embedding cache by tier, reasons for misses, and the state
            of both tiers. docs/cache.md describes the local and the shared tier.""",
        variables=SCOPE_VARIABLES,
        rows=(
            Row("Hit ratio", list(_lookups())),
            Row("Local tier and prefetches", [*_local_tier(), *_prefetches()], width=6),
            Row("Nodes of the shared tier", list(_nodes())),
            Row("Writes and errors of the shared tier", list(_writes())),
            Row("Redis metrics", [*_node_memory(), *_node_load()], width=6),
        ),
    )


def _requests(labels: str = "", by: str = "") -> str:
    return rate("samserve_cache_requests_total", f"{GATEWAY}{labels}", by)


def _lookups() -> Iterator[Panel]:
    local, shared = ',tier="local"', ',tier="shared"'
    total = _requests(local)
    yield Panel(
        "Hit ratio by tier",
        """Ratio of all lookups with a hit in each tier. The sum drops: new images, or the cache
        lost data; compare with the day before. local drops and shared grows: the local tier is too
        small, or clients switch between gateways.""",
        "percentunit",
        [
            Query(ratio(_requests(f'{local},result="hit"'), total), "local"),
            Query(ratio(_requests(f'{shared},result="hit"'), total), "shared"),
        ],
        Kind.STACK,
        maximum=1,
        colors={"local": "#73bf69", "shared": "#5794f2"},
    )
    yield Panel(
        "Lookups by result",
        """Lookups per second by tier and result; a miss in the local tier is followed by a lookup
        in the shared tier. miss: never stored, or expired. unavailable: a node does not respond.
        format_mismatch, model_mismatch: written by another version or model. deleted: deleted by a
        client. corrupt: checksum error, check node and network.""",
        "ops",
        Query(_requests("", "tier, result"), "{{tier}} {{result}}"),
    )
    yield Panel(
        "Hit ratio compared with the day before",
        """Hit ratio of the last 30 minutes, and of 24 hours as of one hour ago. The alert
        SamserveCacheHitRatioLow compares the two.""",
        "percentunit",
        [
            Query(f"max({HIT_RATIO}30m{{{SCOPE}}})", "last 30 minutes"),
            Query(f"max({HIT_RATIO}1d{{{SCOPE}}} offset 1h)", "day before"),
        ],
        maximum=1,
    )


def _local_tier() -> Iterator[Panel]:
    capacity = f"samserve_cache_local_capacity_bytes{{{GATEWAY}}}"
    yield Panel(
        "Local tier utilization",
        """Bytes relative to cache.local.capacity_bytes. Full is normal: the least recently used
        embeddings are evicted. Quarantined memory is reserved for abandoned requests that Triton
        has not ended; over 25 % is too much.""",
        "percentunit",
        [
            Query(
                f"samserve_cache_local_{what}{{{GATEWAY}}} / ({capacity} > 0)",
                f"{name} {POD}",
            )
            for what, name in (("bytes", "used"), ("quarantined_bytes", "quarantined"))
        ],
        thresholds=[(THRESHOLDS.quarantined_ratio, ORANGE)],
        maximum=1,
    )
    yield Panel(
        "Entries in the local tier",
        """Embeddings by gateway. A drop to 0 is a restart: embeddings are read from the shared tier
        again.""",
        "short",
        Query(f"samserve_cache_local_entries{{{GATEWAY}}}", POD),
    )
    yield Panel(
        "Evictions per second",
        """Evictions from the local tier, by gateway. Together with a low hit ratio of the local
        tier: cache.local.capacity_bytes is too small for the working set; see docs/cache.md,
        section Sizing.""",
        "ops",
        Query(
            rate("samserve_cache_local_evictions_total", GATEWAY, "namespace, pod, instance"), POD
        ),
    )


def _prefetches() -> Iterator[Panel]:
    yield Panel(
        "Prefetches",
        """Pending prefetches, and finished prefetches per second by outcome. failed: reported in
        the log only. If pending is near admission.max_prefetches, further prefetches are
        rejected.""",
        "short",
        [
            Query(f"sum(samserve_prefetch_pending{{{GATEWAY}}})", "pending"),
            Query(rate("samserve_prefetches_total", GATEWAY, "outcome"), "{{outcome}} per second"),
        ],
    )


def _nodes() -> Iterator[Panel]:
    yield Panel(
        "Node availability",
        """By node, the worst state of all gateways. unavailable: the node did not respond within
        cache.shared.timeout_s, and the circuit breaker is open; calls for its keys fail at once
        until it responds. One node: its machine. All nodes: network, TLS or password.""",
        "none",
        f"min by (node) (samserve_cache_shared_node_up{{{GATEWAY}}})",
        Kind.STATES,
        mappings={"1": ("up", GREEN), "0": ("unavailable", RED)},
    )
    for q in (0.5, 0.99):
        yield Panel(
            f"Node response time p{q * 100:g}",
            """By node, including the network. One node is slow: its machine, or a replica that is
            being synchronized. All nodes are slow: the network, or large embeddings; see "Shared
            tier throughput".""",
            "s",
            quantile(q, "samserve_cache_shared_node_seconds", GATEWAY, "node"),
        )


def _writes() -> Iterator[Panel]:
    yield Panel(
        "Writes by result",
        """Writes of embeddings per second. exists: another gateway has stored it before. deleted:
        the embedding was deleted before the write. No writes while Embed calls succeed: embeddings
        are stored in one gateway only.""",
        "ops",
        rate("samserve_cache_shared_writes_total", GATEWAY, "result"),
    )
    yield Panel(
        "Command errors by kind",
        """Errors per second. unavailable: no response, see "Node availability". full: out of memory
        with noeviction. command_error: the user lacks a permission, or the cluster is not healthy;
        the log has the reason. corrupt: corrupt data was read again.""",
        "ops",
        rate("samserve_cache_shared_errors_total", GATEWAY, "kind"),
    )
    yield Panel(
        "Shared tier throughput",
        """Bytes of embeddings per second. out: written, in: read. An embedding has 2 MiB for
        SAM 1, 6 MiB for SAM-HQ, 8 MiB for SAM 2. Near the capacity of the network, the p99
        response time of the nodes grows.""",
        "Bps",
        rate("samserve_cache_shared_bytes_total", GATEWAY, "direction"),
    )


def _node_memory() -> Iterator[Panel]:
    yield Panel(
        "Memory utilization by node",
        """Memory relative to maxmemory, from redis_exporter. Full is normal with allkeys-lru; with
        noeviction new embeddings are rejected. No data: the nodes are not scraped, or have no
        maxmemory.""",
        "percentunit",
        Query(
            f"redis_memory_used_bytes{{{REDIS}}} / (redis_memory_max_bytes{{{REDIS}}} > 0)",
            "{{instance}}",
        ),
        thresholds=[(0.95, ORANGE)],
    )
    yield Panel(
        "Evictions, hits and misses of nodes",
        """Per second, over all nodes. Evictions while the hit ratio drops: the cluster is too small
        for the embeddings created within cache.ttl_s.""",
        "ops",
        [
            Query(rate("redis_evicted_keys_total", REDIS), "evictions"),
            Query(rate("redis_keyspace_hits_total", REDIS), "hits"),
            Query(rate("redis_keyspace_misses_total", REDIS), "misses"),
        ],
    )


def _node_load() -> Iterator[Panel]:
    yield Panel(
        "Commands per second by node",
        """Commands that each node serves. One node far above the others: a few images are requested
        by many clients, and their keys are on this node.""",
        "ops",
        rate("redis_commands_processed_total", REDIS, "instance"),
    )
    yield Panel(
        "Connections and keys by node",
        """Connections: up to cache.shared.max_connections_per_node for each gateway, and one for
        its subscription. Keys: embeddings, and deletion markers.""",
        "short",
        [
            Query(f"redis_connected_clients{{{REDIS}}}", "connections {{instance}}"),
            Query(f"sum by (instance) (redis_db_keys{{{REDIS}}})", "keys {{instance}}"),
        ],
    )
