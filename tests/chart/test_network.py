"""The NetworkPolicies allow only the traffic that is required."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chart.rendered import Object, ci_values, container, find_object, render

ON = {"networkPolicy": {"enabled": True}}


def policy(values: dict[str, Any], name: str = "demo-samserve") -> dict[str, Any]:
    return dict(find_object(render(values), "NetworkPolicy", name)["spec"])


def ports(rules: list[Object]) -> list[tuple[Any, str]]:
    return [(port["port"], port.get("protocol", "TCP")) for rule in rules for port in rule["ports"]]


def test_network_policy_is_disabled_by_default() -> None:
    assert "NetworkPolicy" not in [each["kind"] for each in render()]
    assert policy(ON)["policyTypes"] == ["Ingress", "Egress"]


DNS = [(53, "UDP"), (53, "TCP")]
NODES = ["a:6379", "b:6379", "[fd00::1]:7000"]


def traced(endpoint: str) -> dict[str, Any]:
    return {**ON, "config": {"trace": {"endpoint": endpoint}}}


@pytest.mark.parametrize(
    ("values", "ingress", "egress"),
    [
        (ON, [50051, 8081, 8002], []),
        ({**ON, "engine": "onnx"}, [50051, 8081], []),
        ({**ON, "cache": {"shared": {"nodes": NODES}}}, [50051, 8081, 8002], [6379, 7000]),
        (ci_values("pull"), [50051, 8081, 8002], [443]),
        (ci_values("http"), [50051, 8080, 8081], []),
        (traced("http://c:4317"), [50051, 8081, 8002], [4317]),
        (traced("http://c:4317/"), [50051, 8081, 8002], [4317]),
        (traced("https://c"), [50051, 8081, 8002], [443]),
        (traced("https://c/v1"), [50051, 8081, 8002], [443]),
        (traced("http://c"), [50051, 8081, 8002], [80]),
        (traced("http://10.0.0.5"), [50051, 8081, 8002], [80]),
        (traced("http://collector-1"), [50051, 8081, 8002], [80]),
    ],
)
def test_ports_of_listeners_and_dependencies_are_allowed(
    values: dict[str, Any], ingress: list[int], egress: list[int]
) -> None:
    found = policy(values)

    assert ports(found["ingress"]) == [(port, "TCP") for port in ingress]
    assert ports(found["egress"]) == [*DNS, *((port, "TCP") for port in egress)]


def test_sidecar_api_of_triton_is_closed_to_other_pods() -> None:
    """Its gRPC port listens on loopback; its HTTP port is for probes."""
    triton = container(render(ON), "triton")

    assert "triton-http" in [port["name"] for port in triton["ports"]]
    assert 8000 not in [port for port, _ in ports(policy(ON)["ingress"])]
    assert not any(port["containerPort"] == 8001 for port in triton["ports"])


def test_configured_peers_and_the_test_pod_are_allowed() -> None:
    values = ci_values("production")
    api, metrics = policy(values)["ingress"]
    _, cache, _ = policy(values)["egress"]

    assert api["from"][:-1] == values["networkPolicy"]["clients"]
    assert api["from"][-1] == {
        "podSelector": {
            "matchLabels": {
                "app.kubernetes.io/name": "samserve",
                "app.kubernetes.io/instance": "demo",
                "app.kubernetes.io/component": "test",
            }
        }
    }
    assert metrics["from"] == values["networkPolicy"]["monitoring"]
    assert cache["to"] == values["networkPolicy"]["cache"]


def test_extra_egress_rules_are_added() -> None:
    rule = {"ports": [{"port": 8888}]}

    values = {"networkPolicy": {"enabled": True, "extraEgress": [rule]}, "topology": "split"}

    assert policy(values)["egress"][-1] == rule
    assert policy(values, "demo-samserve-triton")["egress"] == [rule]


def test_split_triton_accepts_traffic_from_gateways_only() -> None:
    values = {**ci_values("split-small"), "models": {}}
    gateway, triton = policy(values), policy(values, "demo-samserve-triton")
    labels = {"app.kubernetes.io/name": "samserve", "app.kubernetes.io/instance": "demo"}

    assert ports(triton["ingress"]) == [(8001, "TCP"), (8002, "TCP")]
    assert triton["ingress"][0]["from"] == [
        {"podSelector": {"matchLabels": {**labels, "app.kubernetes.io/component": "gateway"}}}
    ]
    assert triton["egress"] == []
    assert ports(gateway["egress"])[2:] == [(8001, "TCP")]
    assert gateway["egress"][-1]["to"] == [
        {"podSelector": {"matchLabels": {**labels, "app.kubernetes.io/component": "triton"}}}
    ]
    # Models are pulled in the pod of Triton.
    pulling = policy(ci_values("split-small"), "demo-samserve-triton")
    assert ports(pulling["egress"]) == [(53, "UDP"), (53, "TCP"), (443, "TCP")]
    assert (443, "TCP") not in ports(policy(ci_values("split-small"))["egress"])
