"""Every object of every shape is one that Kubernetes, old or new, and the operators take."""

from __future__ import annotations

import functools
import json
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from chart.__main__ import main as chart_main
from chart.places import CHART
from tests.chart.rendered import SHAPES, Object, case, in_each_shape, notes, of_kind
from tests.support.together import check_all

# The oldest that Chart.yaml admits, and the newest that there is.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# What these objects cannot be without, by the definitions that their projects publish.
NEEDED = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): [("selector",), ("endpoints",)],
    ("monitoring.coreos.com/v1", "PrometheusRule"): [("groups",)],
    ("keda.sh/v1alpha1", "ScaledObject"): [("scaleTargetRef", "name"), ("triggers",)],
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): [("parentRefs",), ("rules",)],
}


def is_custom(each: Object) -> bool:
    return (each["apiVersion"], each["kind"]) in NEEDED


def test_lint_finds_nothing() -> None:
    def check(values: dict[str, Any]) -> None:
        report = helm_python.lint(CHART, values, strict=True)
        assert report["total_charts_linted"] == 1
        assert report["errors"] == []
        # An icon would be an image on a web server elsewhere.
        assert [each["error"] for each in report["messages"]] == ["icon is recommended"]

    check_all(check, {shape: case(shape) for shape in SHAPES})


def validate(each: Object) -> None:
    """Raise an error for an object that one of the versions refuses."""
    _validate(json.dumps(each))


@functools.cache
def _validate(text: str) -> None:
    """Do it once for what several shapes have."""
    each = json.loads(text)
    if is_custom(each):
        for path in NEEDED[each["apiVersion"], each["kind"]]:
            value = each["spec"]
            for name in path:
                value = value[name]
            assert value
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


@in_each_shape
def test_kubernetes_takes_every_object(objects: list[Object]) -> None:
    check_all(validate, {f"{each['kind']} {each['metadata']['name']}": each for each in objects})


def test_shapes_cover_every_kind_and_every_template() -> None:
    kinds = {each["kind"] for objects in SHAPES.values() for each in objects}
    templates = (CHART / "templates").rglob("*.yaml")
    made = {
        line.removeprefix("kind: ")
        for path in templates
        for line in path.read_text().splitlines()
        if line.startswith("kind: ")
    }

    assert made <= kinds


def test_endpoints_rules_and_triggers_have_what_their_operators_need() -> None:
    production = SHAPES["production"]
    for endpoint in of_kind(production, "ServiceMonitor")[0]["spec"]["endpoints"]:
        assert endpoint["port"]
    for rule in of_kind(production, "PrometheusRule"):
        for group in rule["spec"]["groups"]:
            assert group["name"]
            assert all(
                each["expr"] and ("alert" in each) ^ ("record" in each) for each in group["rules"]
            )
    for trigger in of_kind(SHAPES["keda"], "ScaledObject")[0]["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold", "authModes"} < trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    for rule in of_kind(SHAPES["route"], "GRPCRoute")[0]["spec"]["rules"]:
        assert all(ref["name"] and ref["port"] for ref in rule["backendRefs"])


def test_rules_are_rendered_as_they_are() -> None:
    given = {
        path.name: yaml.safe_load(path.read_text()) for path in (CHART / "files/rules").iterdir()
    }

    rendered = [each["spec"] for each in of_kind(SHAPES["production"], "PrometheusRule")]

    assert sorted(map(str, rendered)) == sorted(map(str, given.values()))


def test_what_is_generated_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart_main(["check"]) == 0, capsys.readouterr().err


def test_notes_say_how_to_call_it_and_what_is_open() -> None:
    plain, guarded = notes(), notes(case("production"))

    assert "demo-samserve.vision:50051" in plain
    assert "There is no TLS" in plain
    assert "Everybody who can reach" in plain
    assert "cache.nodes" in plain
    assert "get secret samserve-tls -o" in guarded
    assert "SAMSERVE_CLIENT_KEY_FILE=client.key" in guarded
    assert "--token-file key.txt" in guarded
    assert "There is no TLS" not in guarded
    assert "Everybody" not in guarded
