"""The metrics and queries of the autoscalers: they exist, and their values are correct."""

from __future__ import annotations

import re
from pathlib import Path

import promql_parser as promql
import pytest

from tests.chart.rendered import ci_values, of_kind, only, render
from tests.monitoring.catalogue import LABELS
from tests.monitoring.promql import selectors
from tests.monitoring.promtool import evaluate

SPLIT = ci_values("split")


def query(values: dict[str, object]) -> str:
    (trigger,) = only(render(values), "ScaledObject")["spec"]["triggers"]
    return str(trigger["metadata"]["query"])


def check_value(expr: str, series: dict[str, str], expected: float, folder: Path) -> None:
    """Check with promtool that *expr*, rounded, is *expected* after five minutes of *series*."""
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
        (ci_values("keda"), "demo-samserve", "demo-samserve-2"),
        (SPLIT, "demo-samserve-triton", "demo-samserve"),
    ],
    ids=["pod", "split"],
)
def test_keda_query_is_the_average_queue_time_times_the_pods(
    values: dict[str, object], pods: str, others: str, tmp_path: Path
) -> None:
    """Two pods with 10 requests a second each, queued for 30 ms and 50 ms: 40 ms on average.

    A call is queued in the gateway for another 20 ms.
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

    def queue_us(pod: str) -> str:
        return f"nv_inference_queue_duration_us{labels(pod)}"

    one, two, other = f"{pods}-5d9f-abcde", f"{pods}-5d9f-fghij", f"{others}-77aa-zzzzz"
    series = {
        requests(one): "0+150x40",
        queue_us(one): "0+4500000x40",
        requests(two): "0+150x40",
        queue_us(two): "0+7500000x40",
        # Another release, or the gateways.
        requests(other): "0+150x40",
        queue_us(other): "0+90000000x40",
    }

    # AverageValue divides the result by the number of pods. The gateway has no calls yet.
    gateway = 'namespace="vision",pod="demo-samserve-5d9f-xyz12"'
    series[f"samserve_ready{{{gateway}}}"] = "1x40"
    check_value(expr, series, 40.0 * 2, tmp_path)
    # One call a second is queued for 20 ms in total.
    called = f'{gateway},grpc_method="Predict",model="sam"'
    series[f'samserve_stage_seconds_sum{{{called},stage="queue"}}'] = "0+0.3x40"
    series[f'samserve_stage_seconds_count{{{called},stage="queue"}}'] = "0+30x40"
    series[f'samserve_stage_seconds_count{{{called},stage="admit"}}'] = "0+15x40"
    check_value(expr, series, (40.0 + 20.0) * 2, tmp_path)


def test_query_is_zero_without_load(tmp_path: Path) -> None:
    labels = '{namespace="vision",pod="demo-samserve-5d9f-abcde",model="sam_encoder"}'
    series = {
        f"nv_inference_request_success{labels}": "100x40",
        f"nv_inference_queue_duration_us{labels}": "5000x40",
        'samserve_ready{namespace="vision",pod="demo-samserve-5d9f-abcde"}': "1x40",
    }

    check_value(query(ci_values("keda")), series, 0.0, tmp_path)


def test_hpa_scales_on_a_metric_of_the_gateway() -> None:
    (metric,) = only(render(ci_values("hpa")), "HorizontalPodAutoscaler")["spec"]["metrics"]

    assert metric["type"] == "Pods"
    assert metric["pods"]["metric"]["name"] in LABELS
    assert "cpu" not in str(metric)


def test_scaled_object_has_the_replica_bounds() -> None:
    found = only(render(ci_values("keda")), "ScaledObject")["spec"]

    assert (found["minReplicaCount"], found["maxReplicaCount"]) == (2, 6)
    assert found["fallback"]["replicas"] == 2
    assert not of_kind(render(ci_values("keda")), "HorizontalPodAutoscaler")
