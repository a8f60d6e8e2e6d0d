"""What autoscalers ask is what gateway and Triton export, and is right."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser as promql
import pytest

from tests.chart.rendered import case, of_kind, only, render
from tests.monitoring.catalogue import LABELS
from tests.monitoring.promql import selectors
from tests.monitoring.promtool import evaluate

SPLIT = case("split")


def query(values: dict[str, object]) -> str:
    (trigger,) = only(render(values), "ScaledObject")["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def evaluated(expr: str, series: dict[str, str], expected: float, folder: Path) -> None:
    """Have promtool evaluate *expr* after five minutes of *series*, rounded."""
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            {
                "expr": f"round({expr}, 0.001)",
                "eval_time": "5m",
                "exp_samples": [{"labels": "{}", "value": expected}],
            }
        ],
    }
    evaluate(folder, test)


@pytest.mark.parametrize(
    ("values", "pods", "others"),
    [
        (case("keda"), "demo-samserve", "demo-samserve-2"),
        (SPLIT, "demo-samserve-triton", "demo-samserve"),
    ],
    ids=["pod", "split"],
)
def test_keda_sees_the_wait_in_tritons_queue(
    values: dict[str, object], pods: str, others: str, tmp_path: Path
) -> None:
    """Two pods, 10 requests a second each; one waits 30 ms, the other 50: 40 on average.

    In the gateway a call waits 20 ms more.
    """
    expr = query(values)
    names = {selector.name or "" for selector in selectors(promql.parse(expr))}
    families = {re.sub("_(sum|count)$", "", name) for name in names}
    assert families == {
        "nv_inference_queue_duration_us",
        "nv_inference_request_success",
        "samserve_stage_seconds",
        "samserve_ready",
    }
    assert names <= LABELS.keys()

    def labels(pod: str, model: str = "sam_encoder") -> str:
        return f'{{namespace="vision",pod="{pod}",model="{model}"}}'

    def requests(pod: str) -> str:
        return f"nv_inference_request_success{labels(pod)}"

    def waited(pod: str) -> str:
        return f"nv_inference_queue_duration_us{labels(pod)}"

    one, two, other = f"{pods}-5d9f-abcde", f"{pods}-5d9f-fghij", f"{others}-77aa-zzzzz"
    series = {
        requests(one): "0+150x40",
        waited(one): "0+4500000x40",
        requests(two): "0+150x40",
        waited(two): "0+7500000x40",
        # Of another release, or of the gateways.
        requests(other): "0+150x40",
        waited(other): "0+90000000x40",
    }

    # AverageValue divides what it gets by the number of pods.  No call has been made yet.
    gateway = 'namespace="vision",pod="demo-samserve-5d9f-xyz12"'
    series[f"samserve_ready{{{gateway}}}"] = "1x40"
    evaluated(expr, series, 40.0 * 2, tmp_path)
    # A call a second waits 20 ms for its turns.
    called = f'{gateway},grpc_method="Predict",model="sam"'
    series[f'samserve_stage_seconds_sum{{{called},stage="queue"}}'] = "0+0.3x40"
    series[f'samserve_stage_seconds_count{{{called},stage="queue"}}'] = "0+30x40"
    series[f'samserve_stage_seconds_count{{{called},stage="admit"}}'] = "0+15x40"
    evaluated(expr, series, (40.0 + 20.0) * 2, tmp_path)


def test_nothing_to_do_is_no_wait(tmp_path: Path) -> None:
    labels = '{namespace="vision",pod="demo-samserve-5d9f-abcde",model="sam_encoder"}'
    series = {
        f"nv_inference_request_success{labels}": "100x40",
        f"nv_inference_queue_duration_us{labels}": "5000x40",
        'samserve_ready{namespace="vision",pod="demo-samserve-5d9f-abcde"}': "1x40",
    }

    evaluated(query(case("keda")), series, 0.0, tmp_path)


def test_the_hpa_looks_at_a_metric_of_the_gateway() -> None:
    (metric,) = only(render(case("hpa")), "HorizontalPodAutoscaler")["spec"]["metrics"]

    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] in LABELS
    assert "cpu" not in str(metric)


def test_an_autoscaler_keeps_to_its_bounds() -> None:
    found = only(render(case("keda")), "ScaledObject")["spec"]

    assert (found["minReplicaCount"], found["maxReplicaCount"]) == (2, 6)
    assert found["fallback"]["replicas"] == 2
    assert not of_kind(render(case("keda")), "HorizontalPodAutoscaler")
