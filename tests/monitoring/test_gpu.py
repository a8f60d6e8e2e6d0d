"""Queries about GPUs, evaluated on metrics that a Triton with a GPU has exported.

``gpu/*.txt`` was recorded from tritonserver 24.10 on a machine with an NVIDIA H200, before and
while a model of the Python backend multiplied matrices on it; only the GPU's name was changed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from monitoring.queries import queries, substitute
from tests.monitoring.catalogue import LABELS
from tests.monitoring.promtool import evaluate

RECORDED = {path.stem: path.read_text() for path in Path(__file__).parent.glob("gpu/*.txt")}
QUERIES = [query for query in queries() if "nv_gpu_" in query.expr]


def test_gpu_panels_have_one_value_per_gpu(tmp_path: Path) -> None:
    """The recorded values are 100 %, 1.4 % and 693 W."""
    series = [
        (f"{sample.name}{{{_labels(sample.labels)}}}", f"{sample.value}x20")
        for family in text_string_to_metric_families(RECORDED["busy"])
        for sample in family.samples
        if sample.name.startswith("nv_gpu_")
    ]
    (gpu,) = {re.search(r'gpu_uuid="(GPU-[^"]+)"', name)[1] for name, _ in series}  # type: ignore[index]
    tests = []
    for query in QUERIES:
        expr = substitute(query.expr)
        # Ratios, and watts.
        low, high = (600, 700) if "power" in expr else (0.01, 1)
        tests.append(
            {
                "expr": f"sum by (gpu_uuid) ((({expr}) > bool {low}) * (({expr}) <= bool {high}))",
                "eval_time": "5m",
                "exp_samples": [{"labels": f'{{gpu_uuid="{gpu}"}}', "value": 1}],
            }
        )
    test = {
        "interval": "15s",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": tests,
    }

    evaluate(tmp_path, test)


def _labels(labels: Mapping[str, str]) -> str:
    """Return the labels of a sample in PromQL notation, with those that a scrape adds."""
    scraped = {"namespace": "samserve", "job": "samserve-triton", "instance": "127.0.0.1:8002"}
    return ",".join(f'{name}="{value}"' for name, value in {**labels, **scraped}.items())


def test_dashboards_have_gpu_queries() -> None:
    assert len(QUERIES) >= 4


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_catalogue_matches_the_metrics_of_triton(when: str) -> None:
    found = {
        sample.name.removesuffix("_total"): set(sample.labels)
        for family in text_string_to_metric_families(RECORDED[when])
        for sample in family.samples
    }

    expected = {name: labels for name, labels in LABELS.items() if name.startswith("nv_")}
    assert expected
    assert {name: found.get(name) for name in expected} == expected
