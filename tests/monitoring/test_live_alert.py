"""A stage becomes slow: the alert fires live, and the dashboards show the stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samserve.client import Prompt, SyncClient

from monitoring.live.scenes import scene
from monitoring.live.stack import Stack, chart_rules, fast_rules, running
from monitoring.queries import queries, substitute
from tests.monitoring import slow_gateway
from tests.support.waiting import until_sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ALERT = ("SamserveLatencyBurnFast", "Predict")
# Calls before the decoder is slowed down.
BASELINE_CALLS = 30
# Far more than the alert's two minutes and two evaluations; only a failing test needs it all.
FIRES_WITHIN_S = 600


def fastest_rules(folder: Path) -> list[Path]:
    """Write the chart's rules, evaluated every second, with ``for: 2m`` replaced by ``for: 5s``.

    Alerts with other durations keep them, and must not fire.
    """
    paths = fast_rules(folder)
    for path in paths:
        path.write_text(path.read_text().replace("for: 2m\n", "for: 5s\n"))
    return paths


@pytest.mark.parametrize(
    "committed",
    [
        pytest.param(False, id="fast"),
        # The chart's own files take minutes; promtool tests them in any case.
        pytest.param(True, id="committed", marks=pytest.mark.long),
    ],
)
def test_slow_decoder_fires_only_the_predict_latency_alert(committed: bool, tmp_path: Path) -> None:
    switch = tmp_path / "slow"
    program = (slow_gateway.__file__, str(switch))
    rules = chart_rules() if committed else fastest_rules(tmp_path)
    with running(program=program, rules=rules) as stack, predicting(stack):
        until_sync(lambda: decode_count(stack) >= BASELINE_CALLS, poll_s=0.5)
        fast = stages(stack, time.time(), 60)
        assert firing(stack) == set()

        switch.touch()
        # A call in flight, and its scrape.
        since = time.time() + 3
        until_sync(lambda: firing(stack), FIRES_WITHIN_S, poll_s=0.5)

        assert firing(stack) == {ALERT}
        until_sync(lambda: time.time() > since + 5)
        now = time.time()
        slow = stages(stack, now, int(now - since))
        grown = {stage: slow[stage] - fast.get(stage, 0.0) for stage in slow}
        # The decode stage grew by the delay, and no other stage grew much, even if the machine is
        # busier now.
        assert grown["decode"] > 0.9 * slow_gateway.DELAY_S
        other_growth = [growth for stage, growth in grown.items() if stage != "decode"]
        assert max(other_growth) < 0.5 * slow_gateway.DELAY_S
        assert largest_cause(stack, now) == "decode"


@contextmanager
def predicting(stack: Stack) -> Iterator[None]:
    """Send Predict calls for one image while the block runs."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def predict() -> None:
        try:
            with SyncClient(stack.gateway.target) as client:
                embedding = client.embed(scene(0))
                while not ended.wait(0.1):
                    client.predict(embedding, [Prompt(points=[(320, 240)])])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=predict)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures


def firing(stack: Stack) -> set[tuple[str, str | None]]:
    """Return the firing alerts with their RPC."""
    return {
        (alert["labels"]["alertname"], alert["labels"].get("grpc_method"))
        for alert in stack.prometheus.alerts()
        if alert["state"] == "firing"
    }


def decode_count(stack: Stack) -> float:
    """Return the number of Predict calls that Prometheus has scraped."""
    of = '{grpc_method="Predict",model="sam_tiny",stage="decode"}[60s]'
    series = stack.prometheus.query(f"sum(increase(samserve_stage_seconds_count{of}))")
    return float(series[0]["value"][1]) if series else 0.0


def stages(stack: Stack, until: float, window_s: int) -> dict[str, float]:
    """Return the mean seconds of a Predict call by stage, over the window before *until*."""
    of = f'{{grpc_method="Predict",model="sam_tiny"}}[{window_s}s]'
    series = stack.prometheus.query(
        f"sum by (stage) (increase(samserve_stage_seconds_sum{of}))"
        f" / sum by (stage) (increase(samserve_stage_seconds_count{of}))",
        until,
    )
    return {each["metric"]["stage"]: float(each["value"][1]) for each in series}


def largest_cause(stack: Stack, now: float) -> str:
    """Return the largest cause in the panel of the overview."""
    values = {
        query.legend: float(series["value"][1])
        for query in queries()
        if query.panel == "Predict latency by cause"
        for series in stack.prometheus.query(substitute(query.expr), now)
    }
    return max(values, key=lambda legend: values[legend])
