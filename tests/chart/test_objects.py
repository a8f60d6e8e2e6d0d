"""Rendered objects are consistent: selectors, labels, ports, volumes, references."""

from __future__ import annotations

import re
from typing import Any

import pytest

from monitoring.series import GATEWAY_JOB, TRITON_JOB
from tests.chart.rendered import (
    RENDERED,
    Object,
    ci_values,
    component_of,
    container,
    containers,
    find_object,
    for_each_values_file,
    mounts,
    of_kind,
    only,
    pods,
    render,
)

# Secrets in the values files of `ci/`, with their keys.
SECRETS = {
    "samserve-tls": {"tls.crt", "tls.key"},
    "samserve-ca": {"ca.crt"},
    "clients": {"ca.crt"},
    "samserve-keys": {"keys.toml"},
    "samserve-jwks": {"jwks.json"},
    "samserve-test": {"token"},
    "samserve-tokens": {"tokens.toml"},
    "label-studio": {"token"},
    "samserve-test-client": {"tls.crt", "tls.key"},
    "valkey": {"password"},
    "valkey-tls": {"ca.crt"},
    "valkey-client": {"tls.crt", "tls.key"},
}
CLAIMS = {"images", "models", "tensorrt"}


def labels(each: Object) -> dict[str, str]:
    found: dict[str, str] = each["metadata"].get("labels", {})
    return found


def selects(selector: dict[str, str], each: Object) -> bool:
    return selector.items() <= labels(each).items()


def ports_of(pod: Object) -> dict[str, int]:
    return {
        port["name"]: port["containerPort"]
        for each in containers(pod)
        for port in each.get("ports", [])
    }


def replicas(objects: list[Object]) -> list[Object]:
    return [each["spec"]["template"] for each in of_kind(objects, "Deployment", "Job")]


@for_each_values_file
def test_selectors_match_the_replicas_only(objects: list[Object]) -> None:
    by_labels = of_kind(objects, "Deployment", "PodDisruptionBudget")
    selectors: list[dict[str, str]] = [
        *(each["spec"]["selector"]["matchLabels"] for each in by_labels),
        *(each["spec"]["selector"] for each in of_kind(objects, "Service")),
        *(each["spec"]["podSelector"]["matchLabels"] for each in of_kind(objects, "NetworkPolicy")),
        *(
            constraint["labelSelector"]["matchLabels"]
            for pod in replicas(objects)
            for constraint in pod["spec"]["topologySpreadConstraints"]
        ),
    ]

    for selector in selectors:
        selected = [pod for pod in pods(objects) if selects(selector, pod)]
        component = selector["app.kubernetes.io/component"]
        expected = [pod for pod in replicas(objects) if component_of(pod) == component]
        assert selected == expected, selector
        assert len(selected) == 1


@for_each_values_file
def test_selectors_exclude_version_and_chart(objects: list[Object]) -> None:
    """These change with every release, and selectors are immutable."""
    for each in of_kind(objects, "Deployment"):
        assert set(each["spec"]["selector"]["matchLabels"]) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }
        assert "helm.sh/chart" not in labels(each["spec"]["template"])


@for_each_values_file
def test_all_objects_have_the_common_labels(objects: list[Object]) -> None:
    for each in objects:
        if each["metadata"]["name"] != "other":  # from extraObjects
            assert labels(each)["app.kubernetes.io/name"] == "samserve"
            assert labels(each)["app.kubernetes.io/instance"] == "demo"
            assert {"app.kubernetes.io/version", "app.kubernetes.io/component"} <= labels(
                each
            ).keys()
            assert labels(each)["app.kubernetes.io/managed-by"] == "Helm"
            assert labels(each)["app.kubernetes.io/part-of"] == "samserve"
            assert labels(each)["helm.sh/chart"] == "samserve-0.1.0"
        assert "namespace" not in each["metadata"]


@for_each_values_file
def test_named_ports_are_declared_by_containers(objects: list[Object]) -> None:
    for service in of_kind(objects, "Service"):
        assert service["spec"]["ports"]
        (pod,) = (each for each in replicas(objects) if component_of(each) == component_of(service))
        ports = ports_of(pod)
        # Services resolve named ports of sidecars only from Kubernetes 1.32 on.
        declared = {port["name"] for each in pod["spec"]["containers"] for port in each["ports"]}
        for port in service["spec"]["ports"]:
            assert port["targetPort"] in declared | set(ports.values())
    for monitor in of_kind(objects, "ServiceMonitor"):
        services = [
            each
            for each in of_kind(objects, "Service")
            if selects(monitor["spec"]["selector"]["matchLabels"], each)
        ]
        # With two Services, every target would be scraped twice.
        assert len(services) == 1
        names = {port["name"] for port in services[0]["spec"]["ports"]}
        assert {each["port"] for each in monitor["spec"]["endpoints"]} <= names
    for route in of_kind(objects, "GRPCRoute"):
        for rule in route["spec"]["rules"]:
            for ref in rule["backendRefs"]:
                service = find_object(objects, "Service", ref["name"])
                assert ref["port"] in [port["port"] for port in service["spec"]["ports"]]


@for_each_values_file
def test_probes_use_declared_ports(objects: list[Object]) -> None:
    for pod in replicas(objects):
        for each in containers(pod):
            own = {port["name"] for port in each.get("ports", [])}
            probes = [each[kind] for kind in each if kind.endswith("Probe")]
            assert all(probe["httpGet"]["port"] in own for probe in probes)
    gateway = container(objects, "gateway")
    # The admin port, since the API may use TLS.
    assert gateway["livenessProbe"]["httpGet"] == {"path": "/livez", "port": "http-metrics"}
    assert gateway["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http-metrics"}
    assert gateway["startupProbe"]["httpGet"]["path"] == "/livez"


@for_each_values_file
def test_volumes_and_mounts_correspond(objects: list[Object]) -> None:
    for pod in pods(objects):
        volumes = [each["name"] for each in pod["spec"]["volumes"]]
        assert len(volumes) == len(set(volumes))
        assert {mount["name"] for mount in mounts(pod)} == set(volumes)
        for each in containers(pod):
            paths = [mount["mountPath"] for mount in each.get("volumeMounts", [])]
            assert len(paths) == len(set(paths))


@for_each_values_file
def test_references_resolve(objects: list[Object]) -> None:
    maps = {
        each["metadata"]["name"]: {**each.get("data", {}), **each.get("binaryData", {})}
        for each in of_kind(objects, "ConfigMap")
    }
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    for pod in pods(objects):
        assert pod["spec"]["serviceAccountName"] in accounts
        for volume in pod["spec"]["volumes"]:
            if "configMap" in volume:
                assert maps[volume["configMap"]["name"]]
            elif "secret" in volume:
                keys = {item["key"] for item in volume["secret"]["items"]}
                assert keys <= SECRETS[volume["secret"]["secretName"]]
            elif "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in CLAIMS
            else:
                assert "emptyDir" in volume
    for scaler in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        deployment = find_object(objects, "Deployment", scaler["spec"]["scaleTargetRef"]["name"])
        assert "replicas" not in deployment["spec"]
        assert scaler["kind"] != "ScaledObject" or "triton" in str(deployment)


@for_each_values_file
def test_no_mount_has_a_sub_path(objects: list[Object]) -> None:
    """A subPath mount is never updated, so that a new certificate would not be used."""
    assert not any("subPath" in mount for pod in pods(objects) for mount in mounts(pod))


@for_each_values_file
def test_containers_are_restricted(objects: list[Object]) -> None:
    for pod in pods(objects):
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in containers(pod):
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            # The root file system is read-only.
            writable = [
                mount["mountPath"]
                for mount in each["volumeMounts"]
                if not mount.get("readOnly", False)
            ]
            assert "/tmp" in writable or each["name"] == "copy-models"


@for_each_values_file
def test_images_have_a_fixed_tag_or_digest(objects: list[Object]) -> None:
    for pod in pods(objects):
        for each in containers(pod):
            assert re.fullmatch(r"[^:@]+(:[\w.-]+|@sha256:[0-9a-f]{64})", each["image"])
            assert not each["image"].endswith(":latest")


def test_replicas_are_set_unless_autoscaled() -> None:
    found = {
        each["metadata"]["name"]: each["spec"].get("replicas")
        for each in of_kind(RENDERED["split"], "Deployment")
    }

    assert found == {"demo-samserve": 4, "demo-samserve-triton": None}
    small = of_kind(RENDERED["split-small"], "Deployment")
    assert [each["spec"]["replicas"] for each in small] == [1, 1]


def test_digest_takes_precedence_over_tag() -> None:
    image = {"repository": "r", "tag": "t", "digest": "sha256:" + "0" * 64}

    assert container(render({"image": image}), "gateway")["image"] == f"r@{image['digest']}"
    image["digest"] = ""
    assert container(render({"image": image}), "gateway")["image"] == "r:t"
    image["tag"] = ""
    assert container(render({"image": image}), "gateway")["image"] == "r:0.1.0"


def test_two_releases_in_one_namespace_do_not_conflict() -> None:
    values = {**ci_values("production"), "extraObjects": []}
    one, other = render(values), render(values, release="second")

    def names(objects: list[Object]) -> set[tuple[str, str]]:
        return {(each["kind"], each["metadata"]["name"]) for each in objects}

    assert not names(one) & names(other)
    for objects, others in ((one, other), (other, one)):
        for each in of_kind(objects, "Service"):
            assert not any(selects(each["spec"]["selector"], pod) for pod in pods(others))


@pytest.mark.parametrize(
    ("release", "name"),
    [
        ("demo", "demo-samserve"),
        ("samserve", "samserve"),
        ("my-samserve-2", "my-samserve-2"),
        ("a" * 53, "a" * 37),
    ],
)
def test_object_names_are_truncated(release: str, name: str) -> None:
    objects = render(ci_values("production"), release=release)

    assert only(objects, "Deployment")["metadata"]["name"] == name
    assert all(len(each["metadata"]["name"]) <= 63 for each in objects)


IMMUTABLE: dict[str, list[tuple[str, ...]]] = {
    "Deployment": [("spec", "selector")],
    "Service": [("spec", "clusterIP")],
}


def at(each: Object, path: tuple[str, ...]) -> Any:
    for name in path:
        each = each.get(name, {})
    return each


@for_each_values_file
def test_upgrades_keep_immutable_fields(objects: list[Object]) -> None:
    before = {(each["kind"], each["metadata"]["name"]): each for each in RENDERED["default"]}
    compared = 0
    for each in objects:
        old = before.get((each["kind"], each["metadata"]["name"]))
        for path in IMMUTABLE.get(each["kind"], []) if old else []:
            assert old is not None
            assert at(old, path) == at(each, path)
            compared += 1
    assert compared == 3


def test_config_changes_restart_pods_and_policy_changes_do_not() -> None:
    def pod(values: dict[str, Any]) -> Object:
        found: Object = only(render(values), "Deployment")["spec"]["template"]
        return found

    policy = {"auth": {"policy": "version = 1"}}

    assert pod({}) == pod({"metrics": {"serviceMonitor": {"enabled": True}}})
    assert pod({}) != pod({"config": {"limits": {"max_prompts": 3}}})
    assert pod(policy) == pod({"auth": {"policy": "version = 1 # changed"}})


def test_disruption_budget_exists_with_more_than_one_pod() -> None:
    assert not of_kind(RENDERED["default"], "PodDisruptionBudget")
    budget = only(RENDERED["production"], "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    assert budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
    values = {**ci_values("production"), "podDisruptionBudget": {"maxUnavailable": 0}}
    assert only(render(values), "PodDisruptionBudget")["spec"]["maxUnavailable"] == 0


def test_services_have_the_configured_ip_families() -> None:
    found = {
        each["metadata"]["name"]: (
            each["spec"].get("ipFamilyPolicy"),
            each["spec"].get("ipFamilies"),
        )
        for each in of_kind(RENDERED["tls"], "Service")
    }

    # With two families, a pod would be scraped twice.
    assert found == {
        "demo-samserve": ("PreferDualStack", ["IPv6", "IPv4"]),
        "demo-samserve-headless": ("SingleStack", ["IPv6"]),
    }
    assert "ipFamilies" not in str(of_kind(RENDERED["split"], "Service"))


def test_jobs_match_dashboards_and_alerts() -> None:
    for name in ("production", "split"):
        endpoints = [
            endpoint
            for monitor in of_kind(RENDERED[name], "ServiceMonitor")
            for endpoint in monitor["spec"]["endpoints"]
        ]
        relabelings = {
            each["port"]: {rule["targetLabel"]: rule["replacement"] for rule in each["relabelings"]}
            for each in endpoints
        }
        assert relabelings == {
            "http-metrics": {"job": GATEWAY_JOB, "release": "demo"},
            "triton-metrics": {"job": TRITON_JOB, "release": "demo"},
        }
