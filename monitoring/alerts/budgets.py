"""Alerts on objectives: an error budget is being used up faster than it may be.

They are about what users see, and the only ones, besides those of parts that everything needs, that
wake anybody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from monitoring.objectives import (
    FAST_BURNS,
    LEAST_BAD_CALLS,
    OBJECTIVES,
    PERIOD,
    SLOW_BURNS,
    Burn,
    Objective,
)
from monitoring.recording import BAD, BAD_RATIO, SLOW, SLOW_RATIO
from monitoring.rules import Alert

_LASTING = {"Fast": "2m", "Slow": "15m"}
_SEVERITY = {"Fast": "critical", "Slow": "warning"}
_SECONDS = {"m": 60, "h": 3600, "d": 86400}


def alerts() -> Iterator[Alert]:
    """Yield the alerts of each RPC."""
    for objective in OBJECTIVES:
        yield _availability(objective, "Fast", FAST_BURNS)
        yield _availability(objective, "Slow", SLOW_BURNS)
        yield _latency(objective, "Fast", FAST_BURNS)
        yield _latency(objective, "Slow", SLOW_BURNS)


def _availability(objective: Objective, speed: str, burns: Sequence[Burn]) -> Alert:
    return Alert(
        name=f"SamserveAvailabilityBurn{speed}",
        expr=_expr(objective, burns, (BAD_RATIO, BAD), objective.error_budget),
        lasting=_LASTING[speed],
        severity=_SEVERITY[speed],
        summary=f"{objective.method} fails so often that {_outlook(burns)}",
        description=f"""{{{{ $value | humanizePercentage }}}} of the {objective.method} calls failed
            by the server's doing over the last {_longs(burns)}, and it goes on;
            {objective.error_budget * 100:g}% may. Failures are internal errors, an engine or a
            cache that is away, deadlines that passed, and refusals for overload or want of memory.
            Mistakes of clients and quotas do not count.""",
        labels={"grpc_method": objective.method},
    )


def _latency(objective: Objective, speed: str, burns: Sequence[Burn]) -> Alert:
    return Alert(
        name=f"SamserveLatencyBurn{speed}",
        expr=_expr(objective, burns, (SLOW_RATIO, SLOW), objective.slow_budget),
        lasting=_LASTING[speed],
        severity=_SEVERITY[speed],
        summary=f"{objective.method} is slow so often that {_outlook(burns)}",
        description=f"""{{{{ $value | humanizePercentage }}}} of the {objective.method} calls that
            succeeded over the last {_longs(burns)} took longer than {objective.within_s:g} s, and
            they still do; {objective.slow_budget * 100:g}% may. The time that clients take to send
            and to receive does not count.""",
        labels={"grpc_method": objective.method},
    )


def _expr(
    objective: Objective, burns: Sequence[Burn], records: tuple[str, str], budget: float
) -> str:
    """Compare the ratio with each burn's bound, and demand a number of bad calls."""
    ratio, bad = records
    of = f'{{grpc_method="{objective.method}"}}'
    return " or ".join(
        f"({ratio}{burn.long}{of} > {burn.factor * budget:g}"
        f" and {ratio}{burn.short}{of} > {burn.factor * budget:g}"
        f" and {bad}{burn.long}{of} * {seconds(burn.long)} >= {LEAST_BAD_CALLS})"
        for burn in burns
    )


def _outlook(burns: Sequence[Burn]) -> str:
    days = seconds(PERIOD) / min(burn.factor for burn in burns) / 86400
    return f"the budget of {PERIOD} lasts {days:g}d or less"


def _longs(burns: Sequence[Burn]) -> str:
    return " or ".join(burn.long for burn in burns)


def seconds(duration: str) -> int:
    """Read a duration as Prometheus writes it, of one unit."""
    return int(duration[:-1]) * _SECONDS[duration[-1]]
