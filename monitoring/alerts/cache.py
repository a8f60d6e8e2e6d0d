"""Alerts on the embedding cache: both tiers, the nodes of the shared one, and prefetches."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.alerts.budgets import seconds
from monitoring.objectives import THRESHOLDS
from monitoring.recording import HIT_RATIO, LOOKUPS
from monitoring.rules import Alert
from monitoring.series import GATEWAY, by


def alerts() -> Iterator[Alert]:
    """Yield them, the worst first."""
    yield from _nodes()
    yield from _refusals()
    yield Alert(
        name="SamserveHitRatioCollapse",
        expr=f"""{HIT_RATIO}30m < {THRESHOLDS.hit_ratio_part} * ({HIT_RATIO}1d offset 1h >
            {THRESHOLDS.hit_ratio_before}) and {LOOKUPS}30m * {seconds("30m")} >
            {THRESHOLDS.hit_lookups}""",
        lasting="15m",
        summary="Far fewer embeddings are found than the day before",
        description=f"""{{{{ $value | humanizePercentage }}}} of the embeddings that were looked for
            in the last 30 minutes were found, less than {THRESHOLDS.hit_ratio_part:.0%} of what it
            was over the day before. Each miss costs an encode, or tells a client to send its
            picture again.""",
    )
    ended = f"sum {by()} (rate(samserve_prefetches_total{{{GATEWAY}%s}}[15m]))"
    failed = ended % ',outcome="failed"'
    yield Alert(
        name="SamservePrefetchesFail",
        expr=f"{failed} / ({ended % ''} > 0) > {THRESHOLDS.failed_prefetches_ratio}",
        lasting="15m",
        severity="info",
        summary="Pictures that were to be prefetched are not encoded",
        description="""{{ $value | humanizePercentage }} of the prefetches fail. No client is told:
            its first click on the picture is answered with NOT_FOUND, or waits for an encode.""",
    )


def _nodes() -> Iterator[Alert]:
    lookups = f"sum {by()} (rate(samserve_cache_requests_total{{{GATEWAY},%s}}[5m]))"
    lost = lookups % 'tier="shared",result="unavailable"'
    every = lookups % 'tier="shared"'
    away = f"samserve_cache_node_away{{{GATEWAY}}}"
    yield Alert(
        name="SamserveCacheAway",
        # A gateway that has never reached the cluster knows of no nodes.
        expr=f"""min {by()} ({away}) == 1
            or {lost} / ({every} > 0) > {THRESHOLDS.cache_unavailable_ratio}""",
        lasting="1m",
        severity="critical",
        summary="The shared cache is away",
        description="""No node of the shared cache answers any gateway. Clicks on embeddings that a
            gateway does not have in memory end with UNAVAILABLE, STORE_UNAVAILABLE, and after
            cache.unconfirmed_s those on all that are in the cluster; clicks that send the image are
            answered. New embeddings are kept by one gateway only.""",
    )
    yield Alert(
        name="SamserveCacheNodeAway",
        expr=f"max {by('node')} ({away}) == 1",
        lasting="1m",
        summary="Node {{ $labels.node }} of the shared cache is left alone",
        description="""At least one gateway gets no answers from {{ $labels.node }} and has opened
            its breaker: calls for keys of that node fail at once with STORE_UNAVAILABLE unless
            memory has them, and after cache.unconfirmed_s those as well. The other nodes' keys are
            untouched.""",
    )


def _refusals() -> Iterator[Alert]:
    failures = (
        f'sum {by()} (increase(samserve_cache_failures_total{{{GATEWAY},kind="%s"}}[15m])) > 0'
    )
    yield Alert(
        name="SamserveCacheFull",
        expr=failures % "full",
        summary="The shared cache is full and refuses embeddings",
        description="""Nodes have refused about {{ $value | humanize }} writes in 15 minutes for
            want of memory. New embeddings are kept by one gateway only (STORED_LOCAL), and durable
            ones are refused.""",
    )
    yield Alert(
        name="SamserveCacheRefuses",
        expr=failures % "refused",
        summary="The shared cache refuses commands",
        description="""Nodes have refused about {{ $value | humanize }} commands in 15 minutes: the
            user lacks a right, or the cluster is not in order. The log says which.""",
    )
    yield Alert(
        name="SamserveCacheDamaged",
        expr=f"""sum {by()} (increase(samserve_cache_requests_total
            {{{GATEWAY},tier="shared",result="damaged"}}[1h])) > 0""",
        lasting="0m",
        summary="Embeddings in the shared cache are damaged",
        description="""About {{ $value | humanize }} embeddings read in the last hour did not fit
            their checksum. They were removed and never used, but something between gateways and
            nodes damages data.""",
    )
