"""The bridge in the chart: its settings, its Service, and the traffic that it needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helm_python import HelmError
from samserve.app import running
from samserve.bridge.settings import BridgeSettings
from samserve.engines.fake import FakeEngine
from samserve.settings.loading import read

from tests import sample_images
from tests.bridge.serving import click, point
from tests.bridge.test_pipeline import tokens_file
from tests.chart.rendered import (
    ci_values,
    component_of,
    container,
    find_object,
    notes,
    of_kind,
    pod_spec,
    render,
)
from tests.chart.running import replica_of
from tests.conftest import settings_with
from tests.http.wire import JSON, connected
from tests.secret_leaks import secret
from tests.security.credentials import KeyFile

ON = {"bridge": {"enabled": True}}
NAME = "demo-samserve-bridge"
ALL = ci_values("bridge")


def settings(values: dict[str, Any], folder: Path) -> BridgeSettings:
    """Return the settings that the rendered file has."""
    file = folder / "bridge.toml"
    file.write_text(find_object(render(values), "ConfigMap", NAME)["data"]["bridge.toml"])
    return read(BridgeSettings, file=file)


def policy(values: dict[str, Any], name: str = NAME) -> dict[str, Any]:
    return dict(find_object(render(values), "NetworkPolicy", name)["spec"])


def test_the_bridge_is_disabled_by_default() -> None:
    values = {"networkPolicy": {"enabled": True}, "metrics": {"serviceMonitor": {"enabled": True}}}

    assert "bridge" not in {component_of(each) for each in render(values)}
    assert "bridge" not in notes()


def test_default_settings_call_all_gateways_without_tls(tmp_path: Path) -> None:
    found = settings(ON, tmp_path)

    assert found.gateways.addresses == ("dns:///demo-samserve-headless.vision:50051",)
    assert (found.gateways.tls, found.gateways.allow_plaintext) == (False, True)
    assert (found.listener.host, found.listener.allow_plaintext) == ("::", True)
    assert {NAME, f"{NAME}.vision", f"{NAME}.vision.svc.cluster.local"} <= set(found.listener.hosts)
    assert (found.tokens.file, found.tokens.credential_file) == (None, None)
    assert found.log.format == "json"


def test_settings_name_the_mounted_files(tmp_path: Path) -> None:
    found = settings(ALL, tmp_path)
    mounted = container(render(ALL), "bridge")["volumeMounts"]
    volumes = {each["name"]: each for each in pod_spec(render(ALL), "bridge")["volumes"]}
    files = {
        f"{mount['mountPath']}/{item['path']}"
        for mount in mounted
        if "secret" in (volume := volumes[mount["name"]])
        for item in volume["secret"]["items"]
    }

    named = [
        *(
            found.tls.cert_file,
            found.tls.key_file,
            found.tokens.file,
            found.label_studio.token_file,
        ),
        *(found.tokens.credential_file, found.gateways.ca_file),
        *(found.gateways.cert_file, found.gateways.key_file),
    ]
    assert {str(each) for each in named} == files
    assert (found.gateways.tls, found.gateways.server_name) == (True, "gateway.example.com")
    assert "tools.example.com" in found.listener.hosts
    assert found.label_studio.url == "https://label-studio.example.com"
    assert (found.limits.deadline_s, found.fetch.hosts) == (60, ("images.example.com",))


def test_service_has_the_ports_of_the_settings(tmp_path: Path) -> None:
    found = settings(ALL, tmp_path)
    service = find_object(render(ALL), "Service", NAME)["spec"]
    own = container(render(ALL), "bridge")["ports"]

    assert own == [
        {"name": "tools", "containerPort": found.listener.port},
        {"name": "bridge-metrics", "containerPort": found.listener.admin_port},
    ]
    assert (service["ports"][0]["port"], service["ports"][0]["appProtocol"]) == (443, "https")
    default = find_object(render(ON), "Service", NAME)["spec"]["ports"][0]
    assert (default["port"], default["appProtocol"]) == (9090, "http")
    assert "https://demo-samserve-bridge.vision:443" in notes(ALL)


def test_command_reads_the_mounted_file() -> None:
    bridge = container(render(ON), "bridge")

    assert bridge["command"] == ["samserve", "bridge"]
    assert bridge["env"] == [
        {"name": "SAMSERVE_BRIDGE_CONFIG", "value": "/etc/samserve/bridge/bridge.toml"}
    ]
    assert bridge["image"] == container(render(ON), "gateway")["image"]


def test_only_the_traffic_of_the_bridge_is_allowed() -> None:
    own, gateway = policy(ALL), policy(ALL, "demo-samserve")
    pods = {"podSelector": {"matchLabels": pod_labels("bridge")}}

    assert own["ingress"][0]["from"] == ALL["bridge"]["clients"]
    assert [port["port"] for rule in own["ingress"] for port in rule["ports"]] == [9090, 9091]
    to_gateways = own["egress"][1]
    assert to_gateways["ports"] == [{"port": 50051}]
    assert to_gateways["to"] == [{"podSelector": {"matchLabels": pod_labels("gateway")}}]
    assert pods in gateway["ingress"][0]["from"]
    without = {**ALL, "bridge": {"enabled": False}}
    assert pods not in policy(without, "demo-samserve")["ingress"][0]["from"]


def pod_labels(component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "samserve",
        "app.kubernetes.io/instance": "demo",
        "app.kubernetes.io/component": component,
    }


def test_changed_settings_restart_the_bridge_only() -> None:
    changed = {"bridge": {"enabled": True, "config": {"limits": {"deadline_s": 30}}}}

    def annotations(values: dict[str, Any], component: str) -> Any:
        (found,) = (
            each
            for each in of_kind(render(values), "Deployment")
            if component_of(each) == component
        )
        return found["spec"]["template"]["metadata"]["annotations"]

    assert annotations(ON, "bridge") != annotations(changed, "bridge")
    assert annotations(ON, "gateway") == annotations(changed, "gateway")


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"config": {"listener": {"port": 1}}}, "port"),
        ({"config": {"limits": {"max_bytes": 1}}}, "max_bytes"),
        ({"config": {"server": {}}}, "server"),
        ({"replicas": 0}, "replicas"),
        ({"labelStudio": {"tokenSecret": "a"}}, "requires bridge.labelStudio.url"),
    ],
)
def test_invalid_values_are_rejected(values: dict[str, Any], text: str) -> None:
    with pytest.raises(HelmError, match=text):
        render({"bridge": {"enabled": True, **values}})


@pytest.mark.slow
async def test_pod_of_the_bridge_serves_tools_with_the_files_of_its_secrets(
    tmp_path: Path,
) -> None:
    keys = KeyFile(tmp_path / "keys.toml")
    key, token = keys.add("acme", "embed", "predict"), secret("token-of-an-annotator")
    tokens = tokens_file(tmp_path / "tokens.toml", **{token: key})
    values = {
        "bridge": {"enabled": True, "tokens": {"secret": "tokens"}},
        "shutdown": {"drainDelaySeconds": 1},
    }
    secrets = {"tokens": {"tokens.toml": tokens.read_bytes()}}
    gateway_settings = settings_with(auth={"api_keys_file": keys.path})
    request = click(sample_images.png(60, 80), point(40, 30))
    async with running(gateway_settings, engine=FakeEngine()) as gateway:
        services = {"dns:///demo-samserve-headless.vision:50051": gateway.address}
        objects = render(values)
        async with replica_of(objects, "bridge", services, secrets) as pod:
            async with connected(f"http://127.0.0.1:{pod.port(9090)}") as wire:
                body = json.dumps(request).encode()
                path = "/x-anylabeling/v1/predict"
                accepted = await wire.request(path, body, [JSON, ("token", token)])
                rejected = await wire.request(path, body, [JSON, ("token", key)], host=NAME)
            await pod.terminate()

    assert json.loads(accepted.body)["data"]["shapes"]
    assert rejected.status == 401


def test_client_certificates_are_needed_where_gateways_require_them() -> None:
    values = {**ALL, "bridge": {"enabled": True}}

    with pytest.raises(HelmError, match=r"bridge\.gateways\.clientSecret: is required"):
        render(values)
