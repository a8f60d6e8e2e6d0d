"""Series that are computed beforehand: for alerts over long windows, and for "as the day before".

Names are ``level:metric:operation``: the labels that are left, what it is, what was done to it.
Where targets have no ``namespace`` or ``release``, the series have none either.
"""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.objectives import (
    BAD_CODES,
    BAD_REASONS,
    IGNORED_CODES,
    OBJECTIVES,
    QUICK_WINDOWS,
    SLOW_WINDOWS,
)
from monitoring.rules import Group, Recording, any_of, bound
from monitoring.series import GATEWAY, RPC, by, on

BY_METHOD = "namespace_release_grpc_method"
CALLS = f"{BY_METHOD}:samserve_calls:rate"
"""Calls a second that count for availability; followed by the window."""
BAD = f"{BY_METHOD}:samserve_bad_calls:rate"
"""Of those, calls that failed by the server's doing."""
BAD_RATIO = f"{BY_METHOD}:samserve_bad_calls:ratio_rate"
SLOW = f"{BY_METHOD}:samserve_slow_calls:rate"
"""Calls a second that ended well, but took longer than their objective says."""
SLOW_RATIO = f"{BY_METHOD}:samserve_slow_calls:ratio_rate"

HIT_RATIO = "namespace_release:samserve_cache_hits:ratio_rate"
"""Part of the embeddings looked for that either tier had; followed by the window."""
LOOKUPS = "namespace_release:samserve_cache_lookups:rate"

P50 = f"{BY_METHOD}:samserve_call_seconds:p50_rate5m"
P99 = f"{BY_METHOD}:samserve_call_seconds:p99_rate5m"
STAGE_MEAN = f"{BY_METHOD}_model_stage:samserve_stage_seconds:mean_rate5m"
"""Seconds that a call spends in a stage, over all calls: those of one call add up."""
STAGE_P99 = f"{BY_METHOD}_stage:samserve_stage_seconds:p99_rate5m"
"""Of the calls that come to a stage."""

_BY = by("grpc_method")
_METHODS = f'grpc_method=~"{any_of(each.method for each in OBJECTIVES)}"'
_OURS = f"{GATEWAY},{_METHODS}"


def groups() -> Iterator[Group]:
    """Yield all recording rules."""
    quick = [rule for window in QUICK_WINDOWS for rule in _window(window)]
    slow = [rule for window in SLOW_WINDOWS for rule in _window(window)]
    yield Group("samserve.objectives.quick", "30s", quick)
    # Shorter than the five minutes after which a series counts as gone.
    yield Group("samserve.objectives.slow", "2m", slow)
    yield Group("samserve.latency", "30s", list(_latency()))
    yield Group("samserve.cache", "1m", list(_cache()))


def _window(window: str) -> Iterator[Recording]:
    """Yield how many calls there were in *window*, and how many of them were bad or slow."""
    total, bad = f"{CALLS}{window}", f"{BAD}{window}"
    ignored = f'grpc_code!~"{any_of(IGNORED_CODES)}"'
    failed = f'grpc_code=~"{any_of(BAD_CODES)}"'
    refused = f'reason=~"{any_of(BAD_REASONS)}"'
    handled = f"sum {_BY} (rate(grpc_server_handled_total{{{RPC},{_METHODS},%s}}[{window}]))"
    errors = f"sum {_BY} (rate(samserve_errors_total{{{_OURS},{refused}}}[{window}]))"
    yield Recording(total, handled % ignored)
    # What has never happened has no series.
    yield Recording(bad, f"({handled % failed} or 0 * {total}) + ({errors} or 0 * {total})")
    yield Recording(f"{BAD_RATIO}{window}", f"{bad} / ({total} > 0)")

    served = f"sum {_BY} (rate(samserve_call_seconds_count{{{_OURS}}}[{window}]))"
    quick = " or ".join(
        f'rate(samserve_call_seconds_bucket{{{GATEWAY},grpc_method="{each.method}",'
        f"{bound(each.within_s)}}}[{window}])"
        for each in OBJECTIVES
    )
    yield Recording(f"{SLOW}{window}", f"clamp_min({served} - sum {_BY} ({quick}), 0)")
    yield Recording(f"{SLOW_RATIO}{window}", f"{SLOW}{window} / ({served} > 0)")


def _latency() -> Iterator[Recording]:
    calls = f"sum {by('le', 'grpc_method')} (rate(samserve_call_seconds_bucket{{{_OURS}}}[5m]))"
    stages = (
        f"sum {by('le', 'grpc_method', 'stage')} "
        f"(rate(samserve_stage_seconds_bucket{{{_OURS}}}[5m]))"
    )
    by_model = by("grpc_method", "model")
    spent = (
        f"sum {by('grpc_method', 'model', 'stage')} "
        f"(rate(samserve_stage_seconds_sum{{{_OURS}}}[5m]))"
    )
    # Every call has to be let in, so that this stage counts the calls.
    count = f'sum {by_model} (rate(samserve_stage_seconds_count{{{_OURS},stage="admit"}}[5m]))'
    yield Recording(P50, f"histogram_quantile(0.5, {calls})")
    yield Recording(P99, f"histogram_quantile(0.99, {calls})")
    yield Recording(STAGE_P99, f"histogram_quantile(0.99, {stages})")
    matching = f"{on('grpc_method', 'model')} group_left ()"
    yield Recording(STAGE_MEAN, f"{spent} / {matching} ({count} > 0)")


def _cache() -> Iterator[Recording]:
    requests = f"samserve_cache_requests_total{{{GATEWAY},%s}}"
    for window in ("30m", "1d"):
        rates = f"sum {by()} (rate({requests}[{window}]))"
        yield Recording(f"{LOOKUPS}{window}", rates % 'tier="memory"')
        hits = rates % 'result="hit"'
        yield Recording(f"{HIT_RATIO}{window}", f"{hits} / ({LOOKUPS}{window} > 0)")
