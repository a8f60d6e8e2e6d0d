"""The embedding cache: whether it finds what is looked for, and what the nodes behind it do."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, ORANGE, RED, Dashboard, Kind, Panel, Query, Row
from monitoring.dashboards.variables import HERE, OURS, OWNER, POD, REDIS, quantile, rate, ratio
from monitoring.objectives import THRESHOLDS
from monitoring.recording import HIT_RATIO


def page() -> Dashboard:
    """Make the page."""
    return Dashboard(
        name="cache",
        title="samserve / Cache",
        description="""Whether embeddings are found, in which tier, and why not. What memory and the
            shared cache are: docs/cache.md.""",
        variables=OWNER,
        rows=(
            Row("Are embeddings found?", list(_hits())),
            Row("Does the memory of gateways hold them?", [*_memory(), *_prefetches()], width=6),
            Row("Do the nodes of the shared cache answer?", list(_nodes())),
            Row("Is what is embedded kept?", list(_writes())),
            Row(
                "What do the nodes say themselves?", [*_room_of_nodes(), *_load_of_nodes()], width=6
            ),
        ),
    )


def _requests(labels: str = "", by: str = "") -> str:
    return rate("samserve_cache_requests_total", f"{OURS}{labels}", by)


def _hits() -> Iterator[Panel]:
    memory, shared = ',tier="memory"', ',tier="shared"'
    every = _requests(memory)
    yield Panel(
        "Which part is found, and where?",
        """Of all embeddings looked for. Both together fall: new pictures, or something was lost;
        compare with the day before. memory falls and shared grows: memory is too small, or clients
        change gateways.""",
        "percentunit",
        [
            Query(ratio(_requests(f'{memory},result="hit"'), every), "memory"),
            Query(ratio(_requests(f'{shared},result="hit"'), every), "shared cache"),
        ],
        Kind.STACK,
        most=1,
        colors={"memory": "#73bf69", "shared cache": "#5794f2"},
    )
    yield Panel(
        "What comes of lookups?",
        """Lookups a second by tier and result; what memory misses goes on to the shared cache.
        miss: not there, or expired. unavailable: a node does not answer. format, model: written by
        another version or model. deleted: somebody asked for that. damaged: see the network.""",
        "ops",
        Query(_requests("", "tier, result"), "{{tier}} {{result}}"),
    )
    yield Panel(
        "Is that less than the day before?",
        """Part found in the last half hour, beside the last day as it was an hour ago. The alert
        SamserveHitRatioCollapse compares the two.""",
        "percentunit",
        [
            Query(f"max({HIT_RATIO}30m{{{HERE}}})", "the last 30 minutes"),
            Query(f"max({HIT_RATIO}1d{{{HERE}}} offset 1h)", "the day before"),
        ],
        most=1,
    )


def _memory() -> Iterator[Panel]:
    yield Panel(
        "How full is memory?",
        """Of store.capacity_bytes. Full is as it should be: the oldest make room. Quarantined
        memory waits for runs in Triton that were given up; over a quarter is too much.""",
        "percentunit",
        [
            Query(
                f"samserve_store_{what}{{{OURS}}} / (samserve_store_capacity_bytes{{{OURS}}} > 0)",
                f"{name} {POD}",
            )
            for what, name in (("bytes", "held"), ("quarantined_bytes", "quarantined"))
        ],
        steps=[(THRESHOLDS.quarantined_ratio, ORANGE)],
        most=1,
    )
    yield Panel(
        "How many embeddings are held?",
        "By gateway. A fall to nothing is a restart: they come back from the shared cache.",
        "short",
        Query(f"samserve_store_entries{{{OURS}}}", POD),
    )
    yield Panel(
        "How many are dropped for room?",
        """A second, by gateway. Together with a low share of memory: store.capacity_bytes is too
        small for what people work on; docs/cache.md, "Sizing".""",
        "ops",
        Query(rate("samserve_store_evictions_total", OURS, "namespace, pod, instance"), POD),
    )


def _prefetches() -> Iterator[Panel]:
    yield Panel(
        "Do prefetches get done?",
        """Pending ones, and ends a second by outcome. failed: nobody is told but the log. Pending
        ones near admission.prefetch: more are refused.""",
        "short",
        [
            Query(f"sum(samserve_prefetch_pending{{{OURS}}})", "pending"),
            Query(rate("samserve_prefetches_total", OURS, "outcome"), "{{outcome}} a second"),
        ],
    )


def _nodes() -> Iterator[Panel]:
    yield Panel(
        "Which nodes are left alone?",
        """By node, as any gateway sees it. Left alone: it did not answer in cache.timeout_s; calls
        for its keys fail at once until it does. One node: that machine. All: network, TLS or
        password.""",
        "none",
        f"max by (node) (samserve_cache_node_away{{{OURS}}})",
        Kind.STATES,
        words={"0": ("answers", GREEN), "1": ("left alone", RED)},
    )
    for part in (0.5, 0.99):
        yield Panel(
            f"How long do nodes take to answer (p{part * 100:g})?",
            """By node, on the network and in the node. One node slow: its machine, or a replica
            that is being filled. All slow: the network, or embeddings are large; see bytes
            below.""",
            "s",
            quantile(part, "samserve_cache_node_seconds", OURS, "node"),
        )


def _writes() -> Iterator[Panel]:
    yield Panel(
        "What comes of writes?",
        """Embeddings offered a second. exists: another gateway was first. deleted: it was deleted
        meanwhile. None at all while Embeds end well: they are kept in one gateway only.""",
        "ops",
        rate("samserve_cache_writes_total", OURS, "result"),
    )
    yield Panel(
        "Which commands fail?",
        """A second. unavailable: no answer, see the nodes. full: out of memory under noeviction.
        refused: the user lacks a right, or the cluster is not in order; the log says which.""",
        "ops",
        rate("samserve_cache_failures_total", OURS, "kind"),
    )
    yield Panel(
        "How many bytes of embeddings travel?",
        """out: written, in: read. An embedding of SAM 1 has 2 MiB. Near what the network carries,
        p99 of the nodes grows.""",
        "Bps",
        rate("samserve_cache_bytes_total", OURS, "direction"),
    )


def _room_of_nodes() -> Iterator[Panel]:
    yield Panel(
        "How full are the nodes?",
        """Of maxmemory, from redis_exporter. Full is as it should be with allkeys-lru; under
        noeviction new embeddings are refused then. No data: the nodes are not scraped, or have no
        maxmemory.""",
        "percentunit",
        Query(
            f"redis_memory_used_bytes{{{REDIS}}} / (redis_memory_max_bytes{{{REDIS}}} > 0)",
            "{{instance}}",
        ),
        steps=[(0.95, ORANGE)],
    )
    yield Panel(
        "What do nodes drop, and what do they find?",
        """A second, over all nodes. Dropped while the hit ratio falls: the cluster is too small for
        what is embedded within store.ttl_s.""",
        "ops",
        [
            Query(rate("redis_evicted_keys_total", REDIS), "dropped for room"),
            Query(rate("redis_keyspace_hits_total", REDIS), "found"),
            Query(rate("redis_keyspace_misses_total", REDIS), "not found"),
        ],
    )


def _load_of_nodes() -> Iterator[Panel]:
    yield Panel(
        "How many commands do nodes serve?",
        """A second, by node. One node far above the others: a few pictures are asked for by all;
        their keys are there.""",
        "ops",
        rate("redis_commands_processed_total", REDIS, "instance"),
    )
    yield Panel(
        "Who is connected, and how much is there?",
        """Connections by node: up to cache.connections for each gateway, and one that listens. Keys
        by node: embeddings, and tokens of deleted ones.""",
        "short",
        [
            Query(f"redis_connected_clients{{{REDIS}}}", "connections {{instance}}"),
            Query(f"sum by (instance) (redis_db_keys{{{REDIS}}})", "keys {{instance}}"),
        ],
    )
