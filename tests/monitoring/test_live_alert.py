"""A part becomes slow: the committed rules tell so, live, and the dashboards where it is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from samserve.client import Prompt, SyncClient

from monitoring.live.scenes import scene
from monitoring.live.stack import Stack, chart_rules, quick_rules, running
from monitoring.queries import queries, substitute
from tests.monitoring import slow_gateway
from tests.support.waiting import until_sync

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ALERT = ("SamserveLatencyBurnFast", "Predict")
# Calls before the decoder becomes slow.
BASELINE_CALLS = 30
# Far more than the alert's two minutes, and two evaluations; it only limits a failure.
FIRES_WITHIN_S = 600


def quickest(folder: Path) -> list[Path]:
    """Write the chart's rules, evaluated every second, with 5 s where an alert waits 2 minutes.

    Rules that wait longer stay as they are, and would be seen if they fired.
    """
    paths = quick_rules(folder)
    for path in paths:
        path.write_text(path.read_text().replace("for: 2m\n", "for: 5s\n"))
    return paths


@pytest.mark.parametrize(
    "committed",
    [
        pytest.param(False, id="quick"),
        # The chart's own files take minutes; promtool judges them at any rate.
        pytest.param(True, id="committed", marks=pytest.mark.long),
    ],
)
def test_a_slow_decoder_fires_the_alert_on_predict_s_latency_and_no_other(
    committed: bool, tmp_path: Path
) -> None:
    switch = tmp_path / "slow"
    program = (slow_gateway.__file__, str(switch))
    rules = chart_rules() if committed else quickest(tmp_path)
    with running(program=program, rules=rules) as stack, clicking(stack):
        until_sync(lambda: counted(stack) >= BASELINE_CALLS, poll_s=0.5)
        quick = stages(stack, time.time(), 60)
        assert firing(stack) == set()

        switch.touch()
        # A call that is under way, and a scrape of it.
        since = time.time() + 3
        until_sync(lambda: firing(stack), FIRES_WITHIN_S, poll_s=0.5)

        assert firing(stack) == {ALERT}
        until_sync(lambda: time.time() > since + 5)
        now = time.time()
        slow = stages(stack, now, int(now - since))
        grown = {stage: slow[stage] - quick.get(stage, 0.0) for stage in slow}
        # Nothing was quicker than the delay, and nothing else has become slow, even if the machine
        # is busier now.
        assert grown["decode"] > 0.9 * slow_gateway.DELAY_S
        others = [growth for stage, growth in grown.items() if stage != "decode"]
        assert max(others) < 0.5 * slow_gateway.DELAY_S
        assert largest_cause(stack, now) == "decode"


@contextmanager
def clicking(stack: Stack) -> Iterator[None]:
    """Have somebody click in one picture while the block runs."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def clicks() -> None:
        try:
            with SyncClient(stack.gateway.target) as client:
                embedding = client.embed(scene(0))
                while not ended.wait(0.1):
                    client.predict(embedding, [Prompt(points=[(320, 240)])])
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=clicks)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not failures


def firing(stack: Stack) -> set[tuple[str, str | None]]:
    """Return the alerts that fire, with their RPC."""
    return {
        (alert["labels"]["alertname"], alert["labels"].get("grpc_method"))
        for alert in stack.prometheus.alerts()
        if alert["state"] == "firing"
    }


def counted(stack: Stack) -> float:
    """Return the Predicts that Prometheus knows of."""
    of = '{grpc_method="Predict",model="sam_tiny",stage="decode"}[60s]'
    series = stack.prometheus.query(f"sum(increase(samserve_stage_seconds_count{of}))")
    return float(series[0]["value"][1]) if series else 0.0


def stages(stack: Stack, until: float, window_s: int) -> dict[str, float]:
    """Return mean seconds of a Predict by stage, over the time before *until*."""
    of = f'{{grpc_method="Predict",model="sam_tiny"}}[{window_s}s]'
    series = stack.prometheus.query(
        f"sum by (stage) (increase(samserve_stage_seconds_sum{of}))"
        f" / sum by (stage) (increase(samserve_stage_seconds_count{of}))",
        until,
    )
    return {each["metric"]["stage"]: float(each["value"][1]) for each in series}


def largest_cause(stack: Stack, now: float) -> str:
    """Say what is largest in Overview's picture of a Predict, by the stages that it names."""
    values = {
        query.legend: float(series["value"][1])
        for query in queries()
        if query.panel == "Where does the time of a Predict go?"
        for series in stack.prometheus.query(substitute(query.expr), now)
    }
    return max(values, key=lambda legend: values[legend])
