"""Every rendered object is valid for Kubernetes, oldest and newest, and for the operators."""

from __future__ import annotations

import functools
import json
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from chart.__main__ import main as chart_main
from chart.paths import CHART
from tests.chart.rendered import RENDERED, Object, ci_values, for_each_values_file, notes, of_kind
from tests.support.cases import check_all

# The oldest version that Chart.yaml allows, and the newest with a schema.
VERSIONS = ("1.30", kubernetes_validate.latest_version())
# Required fields of custom resources, from the definitions that their projects publish.
REQUIRED = {
    ("monitoring.coreos.com/v1", "ServiceMonitor"): [("selector",), ("endpoints",)],
    ("monitoring.coreos.com/v1", "PrometheusRule"): [("groups",)],
    ("keda.sh/v1alpha1", "ScaledObject"): [("scaleTargetRef", "name"), ("triggers",)],
    ("gateway.networking.k8s.io/v1", "GRPCRoute"): [("parentRefs",), ("rules",)],
}


def is_custom(each: Object) -> bool:
    return (each["apiVersion"], each["kind"]) in REQUIRED


def test_helm_lint_reports_no_errors() -> None:
    def check(values: dict[str, Any]) -> None:
        report = helm_python.lint(CHART, values, strict=True)
        assert report["total_charts_linted"] == 1
        assert report["errors"] == []
        # An icon would have to be an image on an external web server.
        assert [each["error"] for each in report["messages"]] == ["icon is recommended"]

    check_all(check, {name: ci_values(name) for name in RENDERED})


def validate(each: Object) -> None:
    """Raise an error if one of the versions rejects the object."""
    _validate(json.dumps(each))


@functools.cache
def _validate(text: str) -> None:
    """Validate each distinct object once."""
    each = json.loads(text)
    if is_custom(each):
        for path in REQUIRED[each["apiVersion"], each["kind"]]:
            value = each["spec"]
            for name in path:
                value = value[name]
            assert value
    else:
        for version in VERSIONS:
            kubernetes_validate.validate(each, version, strict=True)


@for_each_values_file
def test_objects_match_the_kubernetes_schemas(objects: list[Object]) -> None:
    check_all(validate, {f"{each['kind']} {each['metadata']['name']}": each for each in objects})


def test_ci_values_render_every_template() -> None:
    kinds = {each["kind"] for objects in RENDERED.values() for each in objects}
    templates = (CHART / "templates").rglob("*.yaml")
    templated = {
        line.removeprefix("kind: ")
        for path in templates
        for line in path.read_text().splitlines()
        if line.startswith("kind: ")
    }

    assert templated <= kinds


def test_custom_resources_have_their_required_fields() -> None:
    production = RENDERED["production"]
    for endpoint in of_kind(production, "ServiceMonitor")[0]["spec"]["endpoints"]:
        assert endpoint["port"]
    for rule in of_kind(production, "PrometheusRule"):
        for group in rule["spec"]["groups"]:
            assert group["name"]
            assert all(
                each["expr"] and ("alert" in each) ^ ("record" in each) for each in group["rules"]
            )
    for trigger in of_kind(RENDERED["keda"], "ScaledObject")[0]["spec"]["triggers"]:
        assert trigger["type"] == "prometheus"
        assert {"serverAddress", "query", "threshold", "authModes"} < trigger["metadata"].keys()
        assert all(isinstance(value, str) for value in trigger["metadata"].values())
    for rule in of_kind(RENDERED["route"], "GRPCRoute")[0]["spec"]["rules"]:
        assert all(ref["name"] and ref["port"] for ref in rule["backendRefs"])


def test_rule_files_are_rendered_unchanged() -> None:
    files = {
        path.name: yaml.safe_load(path.read_text()) for path in (CHART / "files/rules").iterdir()
    }

    rendered = [each["spec"] for each in of_kind(RENDERED["production"], "PrometheusRule")]

    assert sorted(map(str, rendered)) == sorted(map(str, files.values()))


def test_generated_files_are_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert chart_main(["check"]) == 0, capsys.readouterr().err


def test_notes_have_addresses_commands_and_warnings() -> None:
    default, secured = notes(), notes(ci_values("production"))

    assert "demo-samserve.vision:50051" in default
    assert "TLS is disabled" in default
    assert "Authentication is disabled" in default
    assert "cache.shared.nodes" in default
    assert "get secret samserve-tls -o" in secured
    assert "SAMSERVE_CLIENT_KEY_FILE=client.key" in secured
    assert "--token-file key.txt" in secured
    assert "TLS is disabled" not in secured
    assert "Authentication is disabled" not in secured
