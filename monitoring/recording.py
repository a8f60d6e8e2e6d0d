"""Recording rules: for alerts over long windows, and for comparisons with the day before.

Names are ``level:metric:operation``: the remaining labels, the quantity, the operation applied to
it.  Where targets have no ``namespace`` or ``release``, neither have the recorded series.
"""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.objectives import (
    ERROR_CODES,
    ERROR_REASONS,
    IGNORED_CODES,
    LONG_WINDOWS,
    OBJECTIVES,
    SHORT_WINDOWS,
)
from monitoring.rules import Group, Recording, any_of, bucket
from monitoring.series import GATEWAY, RPC, by, on

BY_METHOD = "namespace_release_grpc_method"
CALLS = f"{BY_METHOD}:samserve_calls:rate"
"""Calls per second that count for availability; the window is appended to the name."""
FAILED = f"{BY_METHOD}:samserve_failed_calls:rate"
"""Those of them that failed with a server error."""
FAILED_RATIO = f"{BY_METHOD}:samserve_failed_calls:ratio_rate"
SLOW = f"{BY_METHOD}:samserve_slow_calls:rate"
"""Calls per second that succeeded, but took longer than the threshold of their objective."""
SLOW_RATIO = f"{BY_METHOD}:samserve_slow_calls:ratio_rate"

HIT_RATIO = "namespace_release:samserve_cache_hits:ratio_rate"
"""Ratio of lookups with a hit in either tier; the window is appended to the name."""
LOOKUPS = "namespace_release:samserve_cache_lookups:rate"

P50 = f"{BY_METHOD}:samserve_call_seconds:p50_rate5m"
P99 = f"{BY_METHOD}:samserve_call_seconds:p99_rate5m"
STAGE_MEAN = f"{BY_METHOD}_model_stage:samserve_stage_seconds:mean_rate5m"
"""Seconds that a call spends in a stage, averaged over all calls: they add up to a whole call."""
STAGE_P99 = f"{BY_METHOD}_stage:samserve_stage_seconds:p99_rate5m"
"""Over the calls that enter a stage."""

_BY = by("grpc_method")
_METHODS = f'grpc_method=~"{any_of(each.method for each in OBJECTIVES)}"'
_CALLS = f"{GATEWAY},{_METHODS}"


def groups() -> Iterator[Group]:
    """Yield all recording rules."""
    short = [rule for window in SHORT_WINDOWS for rule in _objectives(window)]
    long = [rule for window in LONG_WINDOWS for rule in _objectives(window)]
    yield Group("samserve.objectives.short", "30s", short)
    # Shorter than the five minutes after which Prometheus treats a series as stale.
    yield Group("samserve.objectives.long", "2m", long)
    yield Group("samserve.latency", "30s", list(_latency()))
    yield Group("samserve.cache", "1m", list(_cache()))


def _objectives(window: str) -> Iterator[Recording]:
    """Yield the rates of all, failed and slow calls over *window*, and their ratios."""
    total, failed = f"{CALLS}{window}", f"{FAILED}{window}"
    ignored = f'grpc_code!~"{any_of(IGNORED_CODES)}"'
    error_codes = f'grpc_code=~"{any_of(ERROR_CODES)}"'
    error_reasons = f'reason=~"{any_of(ERROR_REASONS)}"'
    handled = f"sum {_BY} (rate(grpc_server_handled_total{{{RPC},{_METHODS},%s}}[{window}]))"
    rejected = f"sum {_BY} (rate(samserve_errors_total{{{_CALLS},{error_reasons}}}[{window}]))"
    yield Recording(total, handled % ignored)
    # An event that has never occurred has no series.
    yield Recording(
        failed, f"({handled % error_codes} or 0 * {total}) + ({rejected} or 0 * {total})"
    )
    yield Recording(f"{FAILED_RATIO}{window}", f"{failed} / ({total} > 0)")

    served = f"sum {_BY} (rate(samserve_call_seconds_count{{{_CALLS}}}[{window}]))"
    fast = " or ".join(
        f'rate(samserve_call_seconds_bucket{{{GATEWAY},grpc_method="{each.method}",'
        f"{bucket(each.threshold_s)}}}[{window}])"
        for each in OBJECTIVES
    )
    yield Recording(f"{SLOW}{window}", f"clamp_min({served} - sum {_BY} ({fast}), 0)")
    yield Recording(f"{SLOW_RATIO}{window}", f"{SLOW}{window} / ({served} > 0)")


def _latency() -> Iterator[Recording]:
    calls = f"sum {by('le', 'grpc_method')} (rate(samserve_call_seconds_bucket{{{_CALLS}}}[5m]))"
    stages = (
        f"sum {by('le', 'grpc_method', 'stage')} "
        f"(rate(samserve_stage_seconds_bucket{{{_CALLS}}}[5m]))"
    )
    by_model = by("grpc_method", "model")
    spent = (
        f"sum {by('grpc_method', 'model', 'stage')} "
        f"(rate(samserve_stage_seconds_sum{{{_CALLS}}}[5m]))"
    )
    # Every call passes admission, so the count of this stage is the number of calls.
    count = f'sum {by_model} (rate(samserve_stage_seconds_count{{{_CALLS},stage="admit"}}[5m]))'
    yield Recording(P50, f"histogram_quantile(0.5, {calls})")
    yield Recording(P99, f"histogram_quantile(0.99, {calls})")
    yield Recording(STAGE_P99, f"histogram_quantile(0.99, {stages})")
    matching = f"{on('grpc_method', 'model')} group_left ()"
    yield Recording(STAGE_MEAN, f"{spent} / {matching} ({count} > 0)")


def _cache() -> Iterator[Recording]:
    requests = f"samserve_cache_requests_total{{{GATEWAY},%s}}"
    for window in ("30m", "1d"):
        rates = f"sum {by()} (rate({requests}[{window}]))"
        yield Recording(f"{LOOKUPS}{window}", rates % 'tier="local"')
        hits = rates % 'result="hit"'
        yield Recording(f"{HIT_RATIO}{window}", f"{hits} / ({LOOKUPS}{window} > 0)")
