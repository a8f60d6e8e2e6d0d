"""What the gateway and Triton of a pod are told, and what they share."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from samserve.settings import load

from chart.schema import DECIDED
from tests.chart.rendered import (
    SHAPES,
    Object,
    case,
    config_of,
    config_text,
    container,
    gateways,
    named,
    pod_spec,
    render,
)
from tests.support.together import check_all

GIB = 1 << 30
MOUNTED = "/etc/samserve"
PRODUCTION = {
    "server": {"plaintext": False, "reflection": False, "connection_age_s": 300}
    | {"drain_s": 5, "grace_s": 30},
    "tls": {
        "cert_file": f"{MOUNTED}/tls/tls.crt",
        "client_ca_file": f"{MOUNTED}/client-ca/ca.crt",
        "client_identities": "annotator.example,spiffe://example/pipeline",
    },
    "auth": {
        "keys_file": f"{MOUNTED}/api-keys/keys.toml",
        "jwks_file": f"{MOUNTED}/jwks/jwks.json",
        "jwt_issuer": "https://id.example",
        "jwt_audience": "samserve",
        "policy_file": f"{MOUNTED}/policy/policy.toml",
    },
    "limits": {"image_pixels": 25_000_000},
    "engine": {"kind": "triton"},
    "triton": {"url": "127.0.0.1:8001", "shared_memory": "required", "scratch_bytes": 256 << 20},
    "store": {"capacity_bytes": 4 * GIB, "ttl_s": 3600},
    "cache": {
        "nodes": "valkey-0.valkey:6379,valkey-1.valkey:6379",
        "username": "samserve",
        "password_file": f"{MOUNTED}/cache-password/password",
        "tls": True,
        "ca_file": f"{MOUNTED}/cache-ca/ca.crt",
        "cert_file": f"{MOUNTED}/cache-client/tls.crt",
        "key_file": f"{MOUNTED}/cache-client/tls.key",
    },
    "trace": {"endpoint": "http://collector.observability:4317"},
}
"""What the values of that shape say, as settings."""


def effective(objects: list[Object], folder: Path) -> dict[str, Any]:
    """What `samserve config` says of the rendered file."""
    command = [sys.executable, "-m", "samserve", "config", "--config", config_of(objects, folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return tomllib.loads(result.stdout)


def test_the_gateway_takes_its_file(tmp_path: Path) -> None:
    def check(objects: list[Object]) -> None:
        settings = load(file=config_of(objects, tmp_path))
        assert settings.server.host == settings.server.admin_host == "::"
        assert (settings.server.port, settings.server.admin_port) == (50051, 8081)
        assert settings.log.format == "json"

    check_all(check, SHAPES)


def test_it_says_what_the_values_say(tmp_path: Path) -> None:
    found = effective(SHAPES["production"], tmp_path)

    said = {
        section: {name: found[section][name] for name in values}
        for section, values in PRODUCTION.items()
    }
    assert said == PRODUCTION


def test_every_setting_can_be_given_in_one_way(tmp_path: Path) -> None:
    """What the chart does not decide, `config` sets."""
    settings = load()
    given = {
        section: {
            name: value
            for name, value in json.loads(values.model_dump_json()).items()
            if name not in DECIDED.get(section, ()) and value is not None
        }
        for section, values in settings
    }

    written = tomllib.loads(config_of(render({"config": given}), tmp_path).read_text())

    assert given["limits"]["prompts"] == 256
    for section, values in given.items():
        assert values.items() <= written[section].items()


@pytest.mark.parametrize(
    "text", ["ünïcode ☃", 'a "quoted" \\ word', "<&>", "tab\tand\nline", "#{{ .Values }}", ""]
)
def test_any_text_comes_through(text: str, tmp_path: Path) -> None:
    objects = render({"config": {"auth": {"jwt_tenant_claim": text}}})

    assert load(file=config_of(objects, tmp_path)).auth.jwt_tenant_claim == text


def test_files_that_are_named_are_mounted() -> None:
    objects = SHAPES["production"]
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
    named = {
        line.split(" = ")[1].strip('"')
        for line in config_text(objects).splitlines()
        if "_file = " in line
    }

    assert named == mounted


def test_gateway_and_triton_share_memory(tmp_path: Path) -> None:
    check_all(lambda shape: share_memory(shape, tmp_path), {shape: shape for shape in SHAPES})


def share_memory(shape: str, tmp_path: Path) -> None:
    """Raise an error if the containers of a shape could not share memory as they have to."""
    objects = SHAPES[shape]
    settings = load(file=config_of(objects, tmp_path))
    pod = pod_spec(objects)
    gateway = container(objects, "gateway")
    memory = int(gateway["resources"]["limits"]["memory"])
    if settings.engine.kind != "triton" or shape.startswith("split"):
        assert "shared-memory" not in str(pod["volumes"])
        assert memory >= settings.store.capacity_bytes + GIB
        return
    triton = container(objects, "triton")

    # One memory at one place,
    (volume,) = (each for each in pod["volumes"] if each["name"] == "shared-memory")
    assert volume["emptyDir"]["medium"] == "Memory"
    for each in (gateway, triton):
        assert {"name": "shared-memory", "mountPath": "/dev/shm"} in each["volumeMounts"]
    # with room for all,
    shared = int(volume["emptyDir"]["sizeLimit"])
    assert shared > settings.store.capacity_bytes + settings.triton.scratch_bytes
    # which the gateway, who touches it first, may use;
    assert memory >= shared + GIB
    assert gateway["resources"]["requests"]["memory"] == str(memory)
    # one group that both are in, for segments of mode 0660,
    assert pod["securityContext"]["fsGroup"] == pod["securityContext"]["runAsGroup"] == 1000
    assert "runAsUser" not in {**gateway["securityContext"], **triton["securityContext"]}
    # and a Triton that is let, and reached by nobody else.
    old = shape == "claim"
    assert ("--allow-client-shm=true" in triton["args"]) is not old
    assert "--grpc-address=127.0.0.1" in triton["args"]
    assert settings.triton.shared_memory == "required"


def test_triton_starts_before_the_gateway_and_ends_after_it() -> None:
    pod = pod_spec(SHAPES["default"])
    names = [each["name"] for each in pod["initContainers"]]

    assert names == ["copy-models", "triton"]
    # What makes a container before others a companion of theirs.
    assert pod["initContainers"][1]["restartPolicy"] == "Always"
    assert [each["name"] for each in pod["containers"]] == ["gateway"]


@pytest.mark.parametrize(("drain", "grace"), [(5, 30), (0, 0), (20, 300)])
@pytest.mark.parametrize("engine", ["triton", "onnx"])
def test_there_is_time_to_end(engine: str, drain: int, grace: int, tmp_path: Path) -> None:
    shutdown = {"drainSeconds": drain, "graceSeconds": grace}
    objects = render({"engine": engine, "shutdown": shutdown})
    settings = load(file=config_of(objects, tmp_path)).server
    pod = pod_spec(objects)

    seconds = pod["terminationGracePeriodSeconds"]

    assert (settings.drain_s, settings.grace_s) == (drain, grace)
    assert seconds >= drain + grace + 5 + (5 if engine == "triton" else 0)
    assert seconds <= drain + grace + 20


def test_triton_gets_the_time_that_it_is_given() -> None:
    objects = SHAPES["claim"]
    probe = container(objects, "triton")["startupProbe"]

    assert probe["periodSeconds"] * probe["failureThreshold"] >= 1800


def test_a_rollout_is_given_the_time_that_its_pods_are_given() -> None:
    def seconds(shape: str) -> int:
        return int(gateways(SHAPES[shape])["spec"]["progressDeadlineSeconds"])

    assert seconds("inprocess") == 600
    assert seconds("default") == 600 + 600
    assert seconds("claim") == 600 + 1800
    assert seconds("pull") > 3600


def test_pods_that_are_recreated_know_no_rolling_update() -> None:
    """The API refuses what Helm would leave of the default."""
    strategy = gateways(render({"updateStrategy": {"type": "Recreate"}}))["spec"]["strategy"]

    assert strategy == {"type": "Recreate"}
    assert gateways(render())["spec"]["strategy"]["rollingUpdate"] == {
        "maxSurge": 1,
        "maxUnavailable": 0,
    }


def test_what_is_for_gpu_nodes_is_not_for_gateways_apart() -> None:
    spec = pod_spec(SHAPES["split"])
    triton = pod_spec(SHAPES["split"], "triton")

    assert triton["runtimeClassName"] == "nvidia"
    assert triton["nodeSelector"]
    assert triton["tolerations"]
    assert {"runtimeClassName", "nodeSelector", "tolerations"}.isdisjoint(spec)
    assert "tensorrt" in [each["name"] for each in triton["volumes"]]
    assert "tensorrt" not in [each["name"] for each in spec["volumes"]]


def test_settings_that_are_taken_back_are_not_written(tmp_path: Path) -> None:
    objects = render({"config": {"trace": {"ca_file": None, "ratio": 0.5}}})

    assert load(file=config_of(objects, tmp_path)).trace.ratio == 0.5


def test_gpus_are_asked_for_as_told() -> None:
    default = container(SHAPES["default"], "triton")["resources"]
    assert default["limits"] == {"nvidia.com/gpu": 1}
    slices = {"triton": {"gpus": 2, "gpuResource": "nvidia.com/mig-1g.10gb"}}
    assert container(render(slices), "triton")["resources"]["limits"] == {
        "nvidia.com/mig-1g.10gb": 2
    }
    assert "limits" not in container(render({"triton": {"gpus": 0}}), "triton")["resources"]


def test_models_come_from_where_they_are_said_to() -> None:
    def volume(objects: list[Object]) -> Object:
        (found,) = (each for each in pod_spec(objects)["volumes"] if each["name"] == "models")
        return found

    def names(objects: list[Object]) -> list[str]:
        return [each["name"] for each in pod_spec(objects).get("initContainers", [])]

    copied = SHAPES["production"]
    assert container(copied, "copy-models")["image"] == "registry.example/models:7"
    assert "emptyDir" in volume(copied)
    claimed = SHAPES["claim"]
    assert names(claimed) == ["triton"]
    assert volume(claimed)["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    assert "--model-repository=/models/sam" in container(claimed, "triton")["args"]
    assert "--model-repository=/models/repository" in container(SHAPES["pull"], "triton")["args"]
    assert "--repository=/models/repository" in container(SHAPES["pull"], "pull-0")["args"]
    pulled = SHAPES["pull"]
    assert names(pulled) == ["pull-0", "pull-1", "triton"]
    assert container(pulled, "pull-0")["image"] == "samserve-export:0.1.0"
    assert container(pulled, "pull-1")["command"] == ["samserve", "models", "pull", "sam_vit_b"]
    assert "--precision=fp16" in container(pulled, "pull-1")["args"]
    assert volume(pulled)["persistentVolumeClaim"] == {"claimName": "models"}
    unkept = render({"models": {"source": "pull", "pull": {"models": [{"name": "mobile_sam"}]}}})
    assert volume(unkept)["emptyDir"] == {"sizeLimit": "20Gi"}
    # The gateway's own image has the default model.
    assert names(SHAPES["inprocess"]) == []


def test_the_in_process_engine_reads_any_source(tmp_path: Path) -> None:
    values = {**case("pull"), "engine": "onnx"}
    objects = render(values)

    settings = load(file=config_of(objects, tmp_path))

    assert settings.engine.model_repository == Path("/models/repository")
    assert settings.engine.default_model == "sam_vit_b"
    mounts = container(objects, "gateway")["volumeMounts"]
    assert {"name": "models", "mountPath": "/models", "readOnly": True} in mounts


@pytest.mark.parametrize("path", ["sam", "/sam/", "a/b"])
def test_a_folder_of_a_claim_is_found(path: str) -> None:
    objects = render({"models": {"source": "claim", "claim": {"name": "x", "path": path}}})

    (argument,) = (
        each for each in container(objects, "triton")["args"] if "--model-repository" in each
    )

    assert argument == f"--model-repository=/models/{path.strip('/')}"


def test_a_triton_of_its_own_is_asked_by_its_name_and_outlived(tmp_path: Path) -> None:
    objects = SHAPES["split"]
    settings = load(file=config_of(objects, tmp_path))
    service = named(objects, "Service", settings.triton.url.partition(":")[0])

    assert settings.triton.url == "demo-samserve-triton:8001"
    assert 8001 in [port["port"] for port in service["spec"]["ports"]]
    assert settings.triton.shared_memory == "off"
    # Otherwise its outage would take all gateways away at once.
    assert settings.server.readiness == "started"
    arguments = container(objects, "triton")["args"]
    assert "--grpc-address=[::]" in arguments
    # Nobody shares memory with it, and nobody may.
    assert "--allow-client-shm=true" not in arguments
    assert any(each.startswith("--grpc-restricted-protocol=shared-memory") for each in arguments)
    assert "initContainers" not in pod_spec(objects)
    # No gateway meets two versions of a model at once.
    triton = named(objects, "Deployment", "demo-samserve-triton")
    assert triton["spec"]["strategy"] == {"type": "Recreate"}
    assert pod_spec(objects, "triton")["terminationGracePeriodSeconds"] >= 5 + 30
    assert "--exit-timeout-secs=30" in container(objects, "triton")["args"]


def test_readiness_follows_a_runtime_of_ones_own(tmp_path: Path) -> None:
    for shape in SHAPES:
        if not shape.startswith("split"):
            settings = load(file=config_of(SHAPES[shape], tmp_path))
            assert settings.server.readiness == "engine", shape
