"""The settings of the gateway, the arguments of Triton, and the resources that they share."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from samserve.settings import load

from chart.schema import COMPUTED_SETTINGS
from tests.chart.rendered import (
    RENDERED,
    Object,
    ci_values,
    config_of,
    config_text,
    container,
    find_object,
    gateway_deployment,
    pod_spec,
    render,
)
from tests.support.cases import check_all

GIB = 1 << 30
MOUNTED = "/etc/samserve"
PRODUCTION = {
    "server": {"allow_plaintext": False, "reflection": False, "max_connection_age_s": 300}
    | {"drain_delay_s": 5, "grace_period_s": 30},
    "tls": {
        "cert_file": f"{MOUNTED}/tls/tls.crt",
        "client_ca_file": f"{MOUNTED}/client-ca/ca.crt",
        "client_identities": "annotator.example,spiffe://example/pipeline",
    },
    "auth": {
        "api_keys_file": f"{MOUNTED}/api-keys/keys.toml",
        "jwks_file": f"{MOUNTED}/jwks/jwks.json",
        "jwt_issuer": "https://id.example",
        "jwt_audience": "samserve",
        "policy_file": f"{MOUNTED}/policy/policy.toml",
    },
    "limits": {"max_image_pixels": 25_000_000},
    "engine": {"kind": "triton"},
    "triton": {
        "url": "127.0.0.1:8001",
        "shared_memory": "required",
        "shared_memory_pool_bytes": 256 << 20,
    },
    "cache": {
        "ttl_s": 3600,
        "local": {"capacity_bytes": 4 * GIB},
        "shared": {
            "nodes": "valkey-0.valkey:6379,valkey-1.valkey:6379",
            "username": "samserve",
            "password_file": f"{MOUNTED}/cache-password/password",
            "tls": True,
            "ca_file": f"{MOUNTED}/cache-ca/ca.crt",
            "cert_file": f"{MOUNTED}/cache-client/tls.crt",
            "key_file": f"{MOUNTED}/cache-client/tls.key",
        },
    },
    "trace": {"endpoint": "http://collector.observability:4317"},
}
"""The expected settings with `ci/production-values.yaml`."""


def effective(objects: list[Object], folder: Path) -> dict[str, Any]:
    """Return the settings that `samserve config` prints for the rendered file."""
    command = [sys.executable, "-m", "samserve", "config", "--config", config_of(objects, folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return tomllib.loads(result.stdout)


def test_rendered_settings_are_valid(tmp_path: Path) -> None:
    def check(objects: list[Object]) -> None:
        settings = load(file=config_of(objects, tmp_path))
        assert settings.server.host == settings.server.admin_host == "::"
        assert (settings.server.port, settings.server.admin_port) == (50051, 8081)
        assert settings.log.format == "json"

    check_all(check, RENDERED)


def test_values_become_settings(tmp_path: Path) -> None:
    found = effective(RENDERED["production"], tmp_path)

    assert _subset(found, PRODUCTION) == PRODUCTION


def _subset(found: dict[str, Any], wanted: dict[str, Any]) -> dict[str, Any]:
    """Return the items of *found* whose names are in *wanted*."""
    return {
        name: _subset(found[name], value) if isinstance(value, dict) else found[name]
        for name, value in wanted.items()
    }


def test_config_accepts_every_setting_that_is_not_computed(tmp_path: Path) -> None:
    configurable = _configurable(json.loads(load().model_dump_json()))

    written = tomllib.loads(config_of(render({"config": configurable}), tmp_path).read_text())

    assert configurable["limits"]["max_prompts"] == 256
    assert configurable["cache"]["shared"]["timeout_s"] == 0.5
    assert _subset(written, configurable) == configurable


def _configurable(values: dict[str, Any], section: str = "") -> dict[str, Any]:
    """Return the settings that the chart does not compute."""
    computed = COMPUTED_SETTINGS.get(section, ())
    return {
        name: _configurable(value, f"{section}.{name}".strip("."))
        if isinstance(value, dict)
        else value
        for name, value in values.items()
        if name not in computed and value is not None
    }


@pytest.mark.parametrize(
    "text", ["ünïcode ☃", 'a "quoted" \\ word', "<&>", "tab\tand\nline", "#{{ .Values }}", ""]
)
def test_text_settings_are_quoted_correctly(text: str, tmp_path: Path) -> None:
    objects = render({"config": {"auth": {"jwt_tenant_claim": text}}})

    assert load(file=config_of(objects, tmp_path)).auth.jwt_tenant_claim == text


def test_files_in_settings_are_mounted() -> None:
    objects = RENDERED["production"]
    content = {
        volume["name"]: {item["path"] for item in volume["secret"]["items"]}
        for volume in pod_spec(objects)["volumes"]
        if "secret" in volume
    } | {"policy": {"policy.toml"}}
    mounted = {
        f"{mount['mountPath']}/{file}"
        for mount in container(objects, "gateway")["volumeMounts"]
        for file in content.get(mount["name"], ())
    }
    configured = {
        line.split(" = ")[1].strip('"')
        for line in config_text(objects).splitlines()
        if "_file = " in line
    }

    assert configured == mounted


def test_gateway_and_triton_share_memory(tmp_path: Path) -> None:
    check_all(lambda name: share_memory(name, tmp_path), {name: name for name in RENDERED})


def share_memory(name: str, tmp_path: Path) -> None:
    """Check the volumes, sizes, security contexts and arguments that sharing memory requires."""
    objects = RENDERED[name]
    settings = load(file=config_of(objects, tmp_path))
    pod = pod_spec(objects)
    gateway = container(objects, "gateway")
    memory = int(gateway["resources"]["limits"]["memory"])
    if settings.engine.kind != "triton" or name.startswith("split"):
        assert "shared-memory" not in str(pod["volumes"])
        assert memory >= settings.cache.local.capacity_bytes + GIB
        return
    triton = container(objects, "triton")

    # One volume, mounted at the same path in both containers.
    (volume,) = (each for each in pod["volumes"] if each["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    for each in (gateway, triton):
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in each["volumeMounts"]
    # It is large enough.
    shared = int(volume["emptyDir"]["sizeLimit"])
    assert shared > settings.cache.local.capacity_bytes + settings.triton.shared_memory_pool_bytes
    # Its pages are charged to the gateway, which writes to them first.
    assert memory >= shared + GIB
    assert gateway["resources"]["requests"]["memory"] == str(memory)
    # Both containers have the same group, since the segments have mode 0660.
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"] == 1000
    assert "runAsUser" not in {**gateway["securityContext"], **triton["securityContext"]}
    # Triton allows shared memory, and only the pod can reach its gRPC port.
    has_flag = name != "claim"
    assert ("--allow-client-shm=true" in triton["args"]) is has_flag
    assert "--grpc-address=127.0.0.1" in triton["args"]
    assert settings.triton.shared_memory == "required"


def test_triton_starts_before_the_gateway_and_ends_after_it() -> None:
    pod = pod_spec(RENDERED["default"])
    names = [each["name"] for each in pod["initContainers"]]

    assert names == ["copy-models", "triton"]
    # This makes an init container a sidecar.
    assert pod["initContainers"][1]["restartPolicy"] == "Always"
    assert [each["name"] for each in pod["containers"]] == ["gateway"]


@pytest.mark.parametrize(("drain", "grace"), [(5, 30), (0, 0), (20, 300)])
@pytest.mark.parametrize("engine", ["triton", "onnx"])
def test_termination_grace_period_covers_drain_and_grace(
    engine: str, drain: int, grace: int, tmp_path: Path
) -> None:
    shutdown = {"drainDelaySeconds": drain, "gracePeriodSeconds": grace}
    objects = render({"engine": engine, "shutdown": shutdown})
    settings = load(file=config_of(objects, tmp_path)).server
    pod = pod_spec(objects)

    seconds = pod["terminationGracePeriodSeconds"]

    assert (settings.drain_delay_s, settings.grace_period_s) == (drain, grace)
    assert seconds >= drain + grace + 5 + (5 if engine == "triton" else 0)
    assert seconds <= drain + grace + 20


def test_startup_probe_of_triton_allows_the_startup_timeout() -> None:
    objects = RENDERED["claim"]
    probe = container(objects, "triton")["startupProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


def test_progress_deadline_covers_the_start_of_a_pod() -> None:
    def seconds(name: str) -> int:
        return int(gateway_deployment(RENDERED[name])["spec"]["progressDeadlineSeconds"])

    assert seconds("inprocess") == 600
    assert seconds("default") == 600 + 600
    assert seconds("claim") == 600 + 1800
    assert seconds("pull") > 3600


def test_recreate_has_no_rolling_update_parameters() -> None:
    """The API server would reject the default parameters that Helm merges in."""
    recreated = gateway_deployment(render({"updateStrategy": {"type": "Recreate"}}))

    assert recreated["spec"]["strategy"] == {"type": "Recreate"}
    assert gateway_deployment(render())["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


def test_scheduling_of_triton_does_not_apply_to_gateways_in_split() -> None:
    spec = pod_spec(RENDERED["split"])
    triton = pod_spec(RENDERED["split"], "triton")

    assert triton["runtimeClassName"] == "nvidia"
    assert triton["nodeSelector"]
    assert triton["tolerations"]
    assert {"runtimeClassName", "nodeSelector", "tolerations"}.isdisjoint(spec)
    assert "tensorrt" in [each["name"] for each in triton["volumes"]]
    assert "tensorrt" not in [each["name"] for each in spec["volumes"]]


def test_null_settings_are_omitted(tmp_path: Path) -> None:
    objects = render({"config": {"trace": {"ca_file": None, "sampling_ratio": 0.5}}})

    assert load(file=config_of(objects, tmp_path)).trace.sampling_ratio == 0.5


def test_gpus_are_resource_limits_of_triton() -> None:
    default = container(RENDERED["default"], "triton")["resources"]
    assert default["limits"] == {"nvidia.com/gpu": 1}
    slices = {"triton": {"gpus": 2, "gpuResource": "nvidia.com/mig-1g.10gb"}}
    assert container(render(slices), "triton")["resources"]["limits"] == {
        "nvidia.com/mig-1g.10gb": 2
    }
    assert "limits" not in container(render({"triton": {"gpus": 0}}), "triton")["resources"]


def test_models_come_from_the_configured_source() -> None:
    def volume(objects: list[Object]) -> Object:
        (found,) = (each for each in pod_spec(objects)["volumes"] if each["name"] == "models")
        return found

    def names(objects: list[Object]) -> list[str]:
        return [each["name"] for each in pod_spec(objects).get("initContainers", [])]

    from_image = RENDERED["production"]
    assert container(from_image, "copy-models")["image"] == "registry.example/models:7"
    assert "emptyDir" in volume(from_image)
    from_claim = RENDERED["claim"]
    assert names(from_claim) == ["triton"]
    assert volume(from_claim)["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "--model-repository=/models/sam" in container(from_claim, "triton")["args"]
    assert "--model-repository=/models/repository" in container(RENDERED["pull"], "triton")["args"]
    assert "--repository=/models/repository" in container(RENDERED["pull"], "pull-0")["args"]
    pulled = RENDERED["pull"]
    assert names(pulled) == ["pull-0", "pull-1", "triton"]
    assert container(pulled, "pull-0")["image"] == "samserve-export:0.1.0"
    assert container(pulled, "pull-1")["command"] == ["samserve", "models", "pull", "sam_vit_b"]
    assert "--precision=fp16" in container(pulled, "pull-1")["args"]
    assert volume(pulled)["persistentVolumeClaim"] == {"claimName": "models"}
    without_claim = render(
        {"models": {"source": "pull", "pull": {"models": [{"name": "mobile_sam"}]}}}
    )
    assert volume(without_claim)["emptyDir"] == {"sizeLimit": "20Gi"}
    # The gateway image contains the default model.
    assert names(RENDERED["inprocess"]) == []


def test_in_process_engine_supports_other_sources(tmp_path: Path) -> None:
    values = {**ci_values("pull"), "engine": "onnx"}
    objects = render(values)

    settings = load(file=config_of(objects, tmp_path))

    assert settings.engine.model_repository == Path("/models/repository")
    assert settings.engine.default_model == "sam_vit_b"
    mounts = container(objects, "gateway")["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in mounts


@pytest.mark.parametrize("path", ["sam", "/sam/", "a/b"])
def test_claim_path_is_the_model_repository(path: str) -> None:
    objects = render({"models": {"source": "claim", "claim": {"name": "x", "path": path}}})

    (argument,) = (
        each for each in container(objects, "triton")["args"] if "--model-repository" in each
    )

    assert argument == f"--model-repository=/models/{path.strip('/')}"


def test_split_gateway_uses_the_service_of_triton_and_stays_ready(tmp_path: Path) -> None:
    objects = RENDERED["split"]
    settings = load(file=config_of(objects, tmp_path))
    service = find_object(objects, "Service", settings.triton.url.partition(":")[0])

    assert settings.triton.url == "demo-samserve-triton:8001"
    assert 8001 in [port["port"] for port in service["spec"]["ports"]]
    assert settings.triton.shared_memory == "off"
    # Otherwise an outage of Triton would make all gateways unready at the same time.
    assert settings.server.readiness == "started"
    arguments = container(objects, "triton")["args"]
    assert "--grpc-address=[::]" in arguments
    # Shared memory is neither used nor allowed.
    assert "--allow-client-shm=true" not in arguments
    assert any(each.startswith("--grpc-restricted-protocol=shared-memory") for each in arguments)
    assert "initContainers" not in pod_spec(objects)
    # Two versions of a model never run at the same time.
    triton = find_object(objects, "Deployment", "demo-samserve-triton")
    assert triton["spec"]["strategy"] == {"type": "Recreate"}
    assert pod_spec(objects, "triton")["terminationGracePeriodSeconds"] >= 5 + 30
    assert "--exit-timeout-secs=30" in container(objects, "triton")["args"]


def test_readiness_includes_the_engine_except_in_split(tmp_path: Path) -> None:
    for name in RENDERED:
        if not name.startswith("split"):
            settings = load(file=config_of(RENDERED[name], tmp_path))
            assert settings.server.readiness == "engine", name
