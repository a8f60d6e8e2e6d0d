"""Alerts on service level objectives: an error budget is used up too fast.

They are about symptoms that clients see.  Only they, and alerts on parts that every call needs,
have severity ``critical``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monitoring.objectives import (
    FAST_BURN_RATES,
    MIN_BAD_CALLS,
    OBJECTIVES,
    PERIOD,
    SLOW_BURN_RATES,
    BurnRate,
    Objective,
)
from monitoring.recording import FAILED, FAILED_RATIO, SLOW, SLOW_RATIO
from monitoring.rules import Alert

_FOR = {"Fast": "2m", "Slow": "15m"}
_SEVERITY = {"Fast": "critical", "Slow": "warning"}
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def alerts() -> Iterator[Alert]:
    """Yield the alerts of each RPC."""
    for objective in OBJECTIVES:
        yield _availability(objective, "Fast", FAST_BURN_RATES)
        yield _availability(objective, "Slow", SLOW_BURN_RATES)
        yield _latency(objective, "Fast", FAST_BURN_RATES)
        yield _latency(objective, "Slow", SLOW_BURN_RATES)


def _availability(objective: Objective, speed: str, rates: Sequence[BurnRate]) -> Alert:
    return Alert(
        name=f"SamserveAvailabilityBurn{speed}",
        expr=_expr(objective, rates, (FAILED_RATIO, FAILED), objective.error_budget),
        for_=_FOR[speed],
        severity=_SEVERITY[speed],
        summary=f"{objective.method} uses up its error budget of {PERIOD} in {_days(rates)}",
        description=f"""{{{{ $value | humanizePercentage }}}} of the {objective.method} calls in the
            last {_long_windows(rates)} failed with a server error, and calls still fail; the
            objective allows {objective.error_budget * 100:g}%. Server errors are internal errors,
            an unavailable engine or cache, exceeded deadlines, and calls rejected for overload or
            exhausted memory. Client errors and exceeded quotas do not count.""",
        labels={"grpc_method": objective.method},
    )


def _latency(objective: Objective, speed: str, rates: Sequence[BurnRate]) -> Alert:
    return Alert(
        name=f"SamserveLatencyBurn{speed}",
        expr=_expr(objective, rates, (SLOW_RATIO, SLOW), objective.latency_budget),
        for_=_FOR[speed],
        severity=_SEVERITY[speed],
        summary=f"{objective.method} uses up its latency budget of {PERIOD} in {_days(rates)}",
        description=f"""{{{{ $value | humanizePercentage }}}} of the successful {objective.method}
            calls in the last {_long_windows(rates)} took longer than {objective.threshold_s:g} s,
            and calls are still slow; the objective allows {objective.latency_budget * 100:g}%. The
            time that clients take to send requests and to receive responses does not count.""",
        labels={"grpc_method": objective.method},
    )


def _expr(
    objective: Objective, rates: Sequence[BurnRate], records: tuple[str, str], budget: float
) -> str:
    """Return a comparison of the ratio with each burn rate, and of the count with its minimum."""
    ratio, bad = records
    of = f'{{grpc_method="{objective.method}"}}'
    return " or ".join(
        f"({ratio}{rate.long}{of} > {rate.factor * budget:g}"
        f" and {ratio}{rate.short}{of} > {rate.factor * budget:g}"
        f" and {bad}{rate.long}{of} * {seconds(rate.long)} >= {MIN_BAD_CALLS})"
        for rate in rates
    )


def _days(rates: Sequence[BurnRate]) -> str:
    days = seconds(PERIOD) / min(rate.factor for rate in rates) / 86400
    return f"{days:g}d or less"


def _long_windows(rates: Sequence[BurnRate]) -> str:
    return " or ".join(rate.long for rate in rates)


def seconds(duration: str) -> int:
    """Return the seconds of a duration as Prometheus writes it, of one unit."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]
