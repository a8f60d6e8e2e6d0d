"""Shared by the tests that observe the whole system."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import promql_parser as promql
import yaml
from prometheus_client.parser import text_string_to_metric_families

from harness.program import DIRECT
from harness.prometheus.server import PrometheusServer, Series
from monitoring.live.load import Tally, load
from monitoring.live.stack import Stack, chart_rules
from tests.support.waiting import until_sync

_OPERATORS = {"Equal": "=", "NotEqual": "!=", "Re": "=~", "NotRe": "!~"}


@dataclass(frozen=True, slots=True)
class Observed:
    """A system after a load, and the time of the load in seconds since the epoch."""

    stack: Stack
    tally: Tally
    since: float
    until: float

    def query(self, expr: str) -> list[Series]:
        """Evaluate at the end of the load, and drop NaN."""
        series = self.stack.prometheus.query(expr, self.until)
        return [each for each in series if each["value"][1] != "NaN"]


_MAX_ROUNDS = 10


def run_load(stack: Stack, seconds: float, enough: Callable[[Observed], bool]) -> Observed:
    """Run the load, and wait until Prometheus has scraped its last calls.

    A slow machine makes fewer calls in that time: the load is repeated until it is *enough*.
    """
    since = time.time()
    tally: Tally = Counter()
    for _ in range(_MAX_ROUNDS):
        tally += asyncio.run(_clients(stack, seconds))
        until = time.time() + 1
        wait_scraped(stack.prometheus, until)
        observed = Observed(stack, tally, since, until)
        if enough(observed):
            break
    return observed


async def _clients(stack: Stack, seconds: float) -> Tally:
    async with load(stack.gateway.target) as clients:
        await clients.run(seconds)
        return clients.tally


def wait_scraped(prometheus: PrometheusServer, moment: float) -> None:
    """Return when all targets have been scraped, and all rules evaluated, after *moment*."""

    def scraped() -> bool:
        times = [float(each["value"][1]) for each in prometheus.query("timestamp(up)")]
        return bool(times) and min(times) > moment

    until_sync(scraped, poll_s=0.1)


def rules() -> Iterator[dict[str, Any]]:
    """Yield the chart's rules."""
    for source in chart_rules():
        for group in yaml.safe_load(source.read_text(encoding="utf-8"))["groups"]:
            yield from group["rules"]


def without_range(selector: promql.VectorSelector) -> str:
    """Return a selector without its range and offset."""
    matchers = (
        f"{each.name}{_OPERATORS[str(each.op).removeprefix('MatchOp.')]}{json.dumps(each.value)}"
        for each in selector.matchers.matchers
    )
    return f"{selector.name}{{{','.join(matchers)}}}"


def exported(stack: Stack, name: str, *labels: str) -> dict[tuple[str, ...], float]:
    """Return the values that the gateway currently exports under a name, by those labels."""
    with DIRECT.open(f"{stack.gateway.url}/metrics") as response:
        text = response.read().decode()
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }
