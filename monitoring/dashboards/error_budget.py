"""The first row of the overview: burn rates, error budgets, firing alerts."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, ORANGE, RED, YELLOW, Kind, Panel, Query
from monitoring.dashboards.variables import SCOPE
from monitoring.objectives import FAST_BURN_RATES, OBJECTIVES, PERIOD, SLOW_BURN_RATES
from monitoring.recording import FAILED_RATIO, SLOW_RATIO

_BURN_THRESHOLDS = [
    (SLOW_BURN_RATES[1].factor, YELLOW),
    (FAST_BURN_RATES[1].factor, ORANGE),
    (FAST_BURN_RATES[0].factor, RED),
]
_REMAINING_THRESHOLDS = [(0.0, ORANGE), (0.25, YELLOW), (0.5, GREEN)]


def burn_rate_panels() -> Iterator[Panel]:
    """Yield the burn rates of the last hour."""
    reading = """1 uses up the budget in exactly 30 days; a lasting 6 or 14.4 raises a critical
        alert. No value: no calls in the last hour."""
    yield Panel(
        "Error budget burn rate",
        f"""Do calls fail? Ratio of server errors in the last hour, relative to the availability
        objective. {reading} Next: "Errors by reason" below.""",
        "none",
        list(_burn_rates(FAILED_RATIO, "1h")),
        Kind.STAT,
        thresholds=_BURN_THRESHOLDS,
        no_value="no calls",
    )
    yield Panel(
        "Latency budget burn rate",
        f"""Are calls slow? Ratio of successful calls in the last hour that took longer than their
        objective, without the client's part, relative to the latency objective. {reading} Next: the
        row below.""",
        "none",
        list(_burn_rates(SLOW_RATIO, "1h")),
        Kind.STAT,
        thresholds=_BURN_THRESHOLDS,
        no_value="no calls",
    )


def budget_and_alert_panels() -> Iterator[Panel]:
    """Yield the remaining error budget and the firing alerts."""
    yield Panel(
        f"Error budget remaining ({PERIOD})",
        f"""How much of the availability budget is left, over the last {PERIOD} or the retention
        time of Prometheus if that is shorter. Below 0 the objective is missed: make no risky
        changes until it recovers.""",
        "percentunit",
        [Query(f"1 - ({query.expr})", query.legend) for query in _burn_rates(FAILED_RATIO, PERIOD)],
        Kind.STAT,
        thresholds=_REMAINING_THRESHOLDS,
        base_color=RED,
        no_value="no calls",
    )
    yield Panel(
        "Firing alerts",
        "Each alert has a section of the same name in docs/runbook.md.",
        "none",
        "sum by (alertname, severity, grpc_method, namespace, release) "
        f'(ALERTS{{alertname=~"Samserve.*",alertstate="firing",{SCOPE}}})',
        Kind.TABLE,
        columns={
            "severity": "Severity",
            "alertname": "Alert",
            "grpc_method": "RPC",
            "Value": "Firing",
        },
        no_value="none",
    )


def _burn_rates(record: str, window: str) -> Iterator[Query]:
    """Yield the burn rate of each RPC over *window*."""
    for each in OBJECTIVES:
        budget = each.error_budget if record == FAILED_RATIO else each.latency_budget
        of = f'{SCOPE},grpc_method="{each.method}"'
        yield Query(f"max({record}{window}{{{of}}}) / {budget:g}", each.method)
