"""The first row of the first page: objectives, budgets, alerts."""

from __future__ import annotations

from collections.abc import Iterator

from monitoring.dashboards.spec import GREEN, ORANGE, RED, YELLOW, Kind, Panel, Query
from monitoring.dashboards.variables import HERE
from monitoring.objectives import FAST_BURNS, OBJECTIVES, PERIOD, SLOW_BURNS
from monitoring.recording import BAD_RATIO, SLOW_RATIO

_BURNS = [
    (SLOW_BURNS[1].factor, YELLOW),
    (FAST_BURNS[1].factor, ORANGE),
    (FAST_BURNS[0].factor, RED),
]
_LEFT = [(0.0, ORANGE), (0.25, YELLOW), (0.5, GREEN)]


def burning() -> Iterator[Panel]:
    """Yield how fast the budgets are used up."""
    reading = """1: used up exactly in 30 days. 6 and 14.4 wake somebody if they last. No data: no
        calls in the last hour."""
    yield Panel(
        "How fast do failures use up their budget?",
        f"""Burn rate of availability over the last hour. {reading} Next: 'How do calls fail?'
        below.""",
        "none",
        list(_burns(BAD_RATIO, "1h")),
        Kind.STAT,
        steps=_BURNS,
        empty="no calls",
    )
    yield Panel(
        "How fast do slow calls use up their budget?",
        f"""Burn rate of latency over the last hour: calls that ended well but took longer than
        their objective, without the client's part. {reading} Next: the row below.""",
        "none",
        list(_burns(SLOW_RATIO, "1h")),
        Kind.STAT,
        steps=_BURNS,
        empty="no calls",
    )


def harm() -> Iterator[Panel]:
    """Yield what is left, and what is known already."""
    yield Panel(
        f"How much of the error budget of {PERIOD} is left?",
        f"""Availability, of the last {PERIOD} or as long as Prometheus keeps data, if that is less.
        Under 0 the objective is missed: no risky changes until it recovers.""",
        "percentunit",
        [Query(f"1 - ({query.expr})", query.legend) for query in _burns(BAD_RATIO, PERIOD)],
        Kind.STAT,
        steps=_LEFT,
        base=RED,
        empty="no calls",
    )
    yield Panel(
        "Which alerts fire?",
        "Each has a section of its name in docs/runbook.md. None is good.",
        "none",
        "sum by (alertname, severity, grpc_method, namespace, release) "
        f'(ALERTS{{alertname=~"Samserve.*",alertstate="firing",{HERE}}})',
        Kind.TABLE,
        columns={
            "severity": "Severity",
            "alertname": "Alert",
            "grpc_method": "RPC",
            "Value": "Firing",
        },
        empty="none",
    )


def _burns(record: str, window: str) -> Iterator[Query]:
    """Yield how many times its budget each RPC uses in *window*."""
    for each in OBJECTIVES:
        budget = each.error_budget if record == BAD_RATIO else each.slow_budget
        of = f'{HERE},grpc_method="{each.method}"'
        yield Query(f"max({record}{window}{{{of}}}) / {budget:g}", each.method)
