"""Runs rendered pods: commands, files, ports, probes, shared memory, termination."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
import trustme
from samserve.client import Client
from samserve.client.errors import Unavailable

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.pod.images import resolve_triton_args, supported_triton_args
from harness.program import DIRECT
from tests import sample_images
from tests.chart.rendered import Object, ci_values, container, render
from tests.chart.running import Load, helm_test, replica_of, shared_cache, tls_secret
from tests.security.credentials import KeyFile
from tests.support.waiting import until

LOCAL = {"local": {"memory": "64Mi"}}
POOL = {"sharedMemoryPool": "64Mi"}


def test_harness_runs_triton_with_all_arguments_but_one() -> None:
    """All others are passed to a real tritonserver."""
    triton = container(render(), "triton")
    command = [*triton["command"], *triton["args"]]
    arguments = resolve_triton_args(command, {"POD_IP": "127.0.0.1"})

    assert set(arguments) - set(supported_triton_args(arguments)) == {"--allow-client-shm=true"}


async def status(port: int, path: str, host: str = "127.0.0.1") -> int:
    """Return the status of an HTTP request."""
    try:
        with await asyncio.to_thread(DIRECT.open, f"http://{host}:{port}{path}") as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


async def has_metric(port: int, line: str) -> bool:
    """Return whether *line* is among the metrics on a port."""
    with await asyncio.to_thread(DIRECT.open, f"http://127.0.0.1:{port}/metrics") as response:
        return line in response.read().decode().splitlines()


async def test_pod_without_triton_serves_ipv4_and_ipv6_and_terminates_in_time() -> None:
    """Probes use an IPv6 address, as in an IPv6-only cluster; clients use both families."""
    # Shorter than the default of 5 s, to save time.
    values = {
        "engine": "onnx",
        "cache": {"local": {"memory": "64Mi"}},
        "shutdown": {"drainDelaySeconds": 1},
    }
    objects = render(values)
    async with replica_of(objects, host="::1") as pod:
        output = await helm_test(objects, f"[::1]:{pod.port(50051)}")
        async with Client(f"127.0.0.1:{pod.port(50051)}") as client:
            assert await client.ready()
        await pod.terminate()

    assert "predicted_iou=" in output


@pytest.mark.slow
async def test_default_pod_runs_with_ipv6_only() -> None:
    """Probes and Prometheus also reach Triton over IPv6."""
    objects = render({"cache": LOCAL, "triton": POOL, "shutdown": {"drainDelaySeconds": 0}})
    async with replica_of(objects, host="::1") as pod:
        output = await helm_test(objects, f"[::1]:{pod.port(50051)}")
        ready = await status(pod.port(8000), "/v2/health/ready", "[::1]")
        metrics = await status(pod.port(8002), "/metrics", "[::1]")

    assert "predicted_iou=" in output
    assert (ready, metrics) == (200, 200)


async def test_error_of_a_pod_that_fails_to_start_has_its_log() -> None:
    objects = render({"engine": "onnx", "models": {"default": "unknown_model"}})

    with pytest.raises(HarnessError, match="unknown_model"):
        async with replica_of(objects):
            pass


@pytest.mark.slow
async def test_default_pod_runs_and_is_replaced_without_a_failed_call(
    cluster: Cluster,
) -> None:
    """Models are copied, Triton starts, the gateway uses shared memory, and `helm test` succeeds.

    Then, as in a rolling update, a second pod starts and the first is terminated under load.
    """
    values: dict[str, Any] = {
        **ci_values("default"),
        **shared_cache(cluster),
        "triton": {**ci_values("default").get("triton", {}), **POOL},
        "shutdown": {"drainDelaySeconds": 2, "gracePeriodSeconds": 20},
    }
    objects: list[Object] = render(values)
    async with replica_of(objects) as old:
        output = await helm_test(objects, f"127.0.0.1:{old.port(50051)}")
        triton = old.port(8000)
        codes = {
            path: await status(triton, path)
            for path in ("/v2/health/ready", "/v2/models/stats", "/v2/systemsharedmemory/status")
        }
        async with replica_of(objects) as new:
            addresses = ",".join(f"127.0.0.1:{pod.port(50051)}" for pod in (old, new))
            # The addresses that DNS returns for the headless Service.
            async with Client(f"ipv4:{addresses}", timeout_s=60) as client:
                load = Load(client)
                async with load.running():
                    before = await load.wait_for(20)
                    seconds = await old.terminate()
                    after = load.completed.copy()
                    await load.wait_for(20)
            log = old.logs()["gateway"]

    assert "predicted_iou=" in output
    events = [json.loads(line) for line in log.splitlines() if "{" in line]
    (serving,) = (each for each in events if each.get("event") == "serving")
    assert serving["transport"] == "shared_memory"
    # Probes succeed; everything else requires the header.
    assert codes["/v2/health/ready"] == 200
    assert codes["/v2/models/stats"] == codes["/v2/systemsharedmemory/status"] == 403
    assert load.errors == []
    assert seconds < old.grace_s
    # Calls were in flight, and continued, while the pod terminated.
    assert after["Predict"] > before["Predict"]
    assert sum(each.get("event") == "rpc" for each in events) > 10
    assert events[-1]["event"] == "stopped"


@pytest.mark.slow
async def test_split_gateway_stays_ready_while_triton_is_unavailable() -> None:
    """Calls fail with ENGINE_UNAVAILABLE, and the gateway stays in service."""
    objects = render({"topology": "split", "cache": LOCAL, "triton": POOL})
    async with replica_of(objects, "triton") as triton:
        services = {"demo-samserve-triton:8001": f"127.0.0.1:{triton.port(8001)}"}
        async with replica_of(objects, services=services) as gateway:
            address = f"127.0.0.1:{gateway.port(50051)}"
            output = await helm_test(objects, address)
            await triton.terminate()
            admin = gateway.port(8081)
            await until(lambda: has_metric(admin, "samserve_engine_ready 0.0"))
            ready = await status(admin, "/readyz")
            async with Client(address, timeout_s=10) as client:
                with pytest.raises(Unavailable) as raised:
                    await client.embed(sample_images.png())
            await gateway.terminate()
            log = gateway.logs()["gateway"]

    assert "predicted_iou=" in output
    assert ready == 200
    assert raised.value.reason == "ENGINE_UNAVAILABLE"
    assert '"transport": "message"' in log


@pytest.mark.slow
async def test_tls_and_api_keys_are_read_from_secrets(
    key_file: KeyFile, authority: trustme.CA
) -> None:
    """`helm test` succeeds with a client certificate and an API key, and fails without the key."""
    values: dict[str, Any] = {
        "engine": "onnx",
        "cache": {"local": {"memory": "64Mi"}},
        "tls": {"secret": "server", "clientCaSecret": "ca"},
        "auth": {
            "apiKeys": {"secret": "keys"},
            "policy": "version = 1\n[quotas.default]\nrequests_per_s = 100\n",
        },
        "test": {"caSecret": "ca", "clientSecret": "client", "tokenSecret": "token"},
    }
    token = key_file.add("tests", "embed", "predict")
    secrets = {
        "server": tls_secret(authority.issue_cert("127.0.0.1")),
        "ca": {"ca.crt": authority.cert_pem.bytes()},
        "client": tls_secret(authority.issue_cert("tests.example")),
        "keys": {"keys.toml": key_file.path.read_bytes()},
        "token": {"token": token.encode()},
    }
    objects = render(values)
    async with replica_of(objects, secrets=secrets) as pod:
        address = f"127.0.0.1:{pod.port(50051)}"
        output = await helm_test(objects, address, secrets)
        without_key = render({**values, "test": {**values["test"], "tokenSecret": ""}})
        with pytest.raises(HarnessError, match=r"UNAUTHENTICATED|credential"):
            await helm_test(without_key, address, secrets)
        await pod.terminate()

    assert "predicted_iou=" in output
