"""Alerts on the embedding cache: both tiers, the nodes of the shared tier, and prefetches."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.budgets import seconds
from monitoring.objectives import THRESHOLDS
from monitoring.recording import HIT_RATIO, LOOKUPS
from monitoring.rules import Alert
from monitoring.series import GATEWAY, by


def alerts() -> Iterator[Alert]:
    """Yield them, the most severe first."""
    yield from _nodes()
    yield from _errors()
    yield Alert(
        name="SamserveCacheHitRatioLow",
        expr=f"""{HIT_RATIO}30m < {THRESHOLDS.hit_ratio_drop} * ({HIT_RATIO}1d offset 1h >
            {THRESHOLDS.min_hit_ratio}) and {LOOKUPS}30m * {seconds("30m")} >
            {THRESHOLDS.min_lookups}""",
        for_="15m",
        summary="The cache hit ratio is far below that of the day before",
        description=f"""The cache hit ratio of the last 30 minutes is {{{{ $value |
            humanizePercentage }}}}, less than {THRESHOLDS.hit_ratio_drop:.0%} of that of the day
            before. Each miss costs an encode, or returns NOT_FOUND so that the client sends its
            image again.""",
    )
    ended = f"sum {by()} (rate(samserve_prefetches_total{{{GATEWAY}%s}}[15m]))"
    failed = ended % ',outcome="failed"'
    yield Alert(
        name="SamservePrefetchFailures",
        expr=f"{failed} / ({ended % ''} > 0) > {THRESHOLDS.failed_prefetches_ratio}",
        for_="15m",
        severity="info",
        summary="Prefetches fail",
        description="""{{ $value | humanizePercentage }} of the prefetches fail. No error is
            returned to the client: its first Predict for the image returns NOT_FOUND, or waits for
            an encode.""",
    )


def _nodes() -> Iterator[Alert]:
    lookups = f"sum {by()} (rate(samserve_cache_requests_total{{{GATEWAY},%s}}[5m]))"
    unavailable = lookups % 'tier="shared",result="unavailable"'
    total = lookups % 'tier="shared"'
    up = f"samserve_cache_shared_node_up{{{GATEWAY}}}"
    yield Alert(
        name="SamserveSharedCacheUnavailable",
        # A gateway that has never reached the cluster knows of no nodes.
        expr=f"""max {by()} ({up}) == 0
            or {unavailable} / ({total} > 0) > {THRESHOLDS.cache_unavailable_ratio}""",
        for_="1m",
        severity="critical",
        summary="The shared cache is unavailable",
        description="""No node of the shared cache responds to any gateway. Predict calls by
            embedding id that miss the local cache end with UNAVAILABLE, CACHE_UNAVAILABLE; after
            cache.shared.stale_if_error_s so do those for every embedding stored in the cluster.
            Predict calls with an image succeed. New embeddings are stored by one gateway
            only.""",
    )
    yield Alert(
        name="SamserveSharedCacheNodeUnavailable",
        expr=f"min {by('node')} ({up}) == 0",
        for_="1m",
        summary="Node {{ $labels.node }} of the shared cache is unavailable",
        description="""The circuit breaker of at least one gateway for {{ $labels.node }} is open:
            calls for keys of this node fail at once with CACHE_UNAVAILABLE unless the local cache
            has them, and after cache.shared.stale_if_error_s those fail as well. Keys of other
            nodes are not affected.""",
    )


def _errors() -> Iterator[Alert]:
    errors = (
        f'sum {by()} (increase(samserve_cache_shared_errors_total{{{GATEWAY},kind="%s"}}[15m])) > 0'
    )
    yield Alert(
        name="SamserveSharedCacheFull",
        expr=errors % "full",
        summary="The shared cache is full and rejects writes",
        description="""Nodes of the shared cache have rejected about {{ $value | humanize }} writes
            in 15 minutes because they are out of memory. New embeddings are stored by one gateway
            only (STORED_LOCAL), and durable Embed calls fail.""",
    )
    yield Alert(
        name="SamserveSharedCacheCommandErrors",
        expr=errors % "command_error",
        summary="Commands to the shared cache fail",
        description="""Nodes of the shared cache have rejected about {{ $value | humanize }}
            commands in 15 minutes: the user lacks a permission, or the cluster is not
            healthy. The log has the reason.""",
    )
    yield Alert(
        name="SamserveSharedCacheCorruption",
        expr=f"""sum {by()} (increase(samserve_cache_requests_total
            {{{GATEWAY},tier="shared",result="corrupt"}}[1h])) > 0""",
        for_="0m",
        summary="Embeddings in the shared cache are corrupt",
        description="""About {{ $value | humanize }} embeddings read in the last hour failed their
            checksum. They were removed and not used, but data is corrupted somewhere between
            gateways and nodes.""",
    )
