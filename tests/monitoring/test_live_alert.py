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
from monitoring.live.stack import Stack, chart_rules, running
from monitoring.queries import queries, substitute
from tests.monitoring import slow_gateway
from tests.monitoring.live import seen

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BASELINE_S = 15
# The alert's own two minutes, and two evaluations.
FIRES_WITHIN_S = 240
ALERT = ("SamserveLatencyBurnFast", "Predict")


def test_a_slow_decoder_fires_the_alert_on_predict_s_latency_and_no_other(tmp_path: Path) -> None:
    switch = tmp_path / "slow"
    program = (slow_gateway.__file__, str(switch))
    with running(program=program, rules=chart_rules()) as stack, clicking(stack):
        time.sleep(BASELINE_S)
        began = time.time()
        seen(stack.prometheus, began)
        quick = stages(stack, began, BASELINE_S)
        assert firing(stack) == set()

        switch.touch()
        deadline = time.monotonic() + FIRES_WITHIN_S
        while not firing(stack) and time.monotonic() < deadline:
            time.sleep(1)

        assert firing(stack) == {ALERT}
        now = time.time()
        slow = stages(stack, now, int(now - began) - 5)
        grown = {stage for stage in slow if slow[stage] - quick.get(stage, 0.0) > 0.05}
        assert grown == {"decode"}
        assert slow["decode"] - quick["decode"] == pytest.approx(slow_gateway.DELAY_S, abs=0.1)
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
    """Give the alerts that fire, with their RPC."""
    return {
        (alert["labels"]["alertname"], alert["labels"].get("grpc_method"))
        for alert in stack.prometheus.alerts()
        if alert["state"] == "firing"
    }


def stages(stack: Stack, until: float, window_s: int) -> dict[str, float]:
    """Give mean seconds of a Predict by stage, over the time before *until*."""
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
