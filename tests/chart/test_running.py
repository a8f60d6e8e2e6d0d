"""The rendered pod runs: its commands, files, ports, probes, shared memory, and its end."""

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
from harness.pod.images import given_to_triton, triton_arguments
from harness.program import DIRECT
from tests import pictures
from tests.chart.rendered import Object, case, container, render
from tests.chart.running import Load, helm_test, pair, replica_of
from tests.security.credentials import KeyFile
from tests.support.waiting import until

SMALL = {"memory": "64Mi", "scratch": "64Mi"}


def test_arguments_of_production_that_the_harness_leaves_out() -> None:
    """One, and it is there: everything else reaches a real tritonserver."""
    triton = container(render(), "triton")
    command = [*triton["command"], *triton["args"]]
    given = given_to_triton(command, {"POD_IP": "127.0.0.1"})

    assert set(given) - set(triton_arguments(given)) == {"--allow-client-shm=true"}


async def status(port: int, path: str, host: str = "127.0.0.1") -> int:
    """Ask over HTTP."""
    try:
        with await asyncio.to_thread(DIRECT.open, f"http://{host}:{port}{path}") as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def says(port: int, line: str) -> bool:
    """Whether a line is among the metrics on a port."""
    with await asyncio.to_thread(DIRECT.open, f"http://127.0.0.1:{port}/metrics") as answer:
        return line in answer.read().decode().splitlines()


async def test_a_pod_without_triton_serves_over_both_families_and_ends_in_time() -> None:
    """Probes ask an IPv6 address, as in a cluster that has no others; clients come over both."""
    # Draining is waiting: a second does as well as the default's five.
    values = {"engine": "onnx", "cache": {"memory": "64Mi"}, "shutdown": {"drainSeconds": 1}}
    objects = render(values)
    async with replica_of(objects, host="::1") as pod:
        said = await helm_test(objects, f"[::1]:{pod.port(50051)}")
        async with Client(f"127.0.0.1:{pod.port(50051)}") as client:
            assert await client.ready()
        await pod.terminate()

    assert "predicted_iou=" in said


@pytest.mark.slow
async def test_the_default_shape_runs_where_there_is_only_ipv6() -> None:
    """Probes and Prometheus ask Triton over IPv6, too."""
    objects = render({"cache": SMALL, "shutdown": {"drainSeconds": 0}})
    async with replica_of(objects, host="::1") as pod:
        said = await helm_test(objects, f"[::1]:{pod.port(50051)}")
        ready = await status(pod.port(8000), "/v2/health/ready", "[::1]")
        metrics = await status(pod.port(8002), "/metrics", "[::1]")

    assert "predicted_iou=" in said
    assert (ready, metrics) == (200, 200)


async def test_a_pod_that_cannot_start_says_why() -> None:
    objects = render({"engine": "onnx", "models": {"default": "nobody"}})

    with pytest.raises(HarnessError, match="nobody"):
        async with replica_of(objects):
            pass


@pytest.mark.slow
async def test_the_default_shape_runs_and_is_replaced_without_a_failed_call(
    cluster: Cluster,
) -> None:
    """Models are copied, Triton starts, then the gateway shares its memory; `helm test` passes.

    Then as in a rolling update: one more pod, and the first is told to end, under load.
    """
    values: dict[str, Any] = {
        **case("default"),
        "cache": {**SMALL, "nodes": list(cluster.addresses[:2])},
        "shutdown": {"drainSeconds": 2, "graceSeconds": 20},
    }
    objects: list[Object] = render(values)
    async with replica_of(objects) as old:
        said = await helm_test(objects, f"127.0.0.1:{old.port(50051)}")
        triton = old.port(8000)
        codes = {
            path: await status(triton, path)
            for path in ("/v2/health/ready", "/v2/models/stats", "/v2/systemsharedmemory/status")
        }
        async with replica_of(objects) as new:
            addresses = ",".join(f"127.0.0.1:{pod.port(50051)}" for pod in (old, new))
            # What DNS gives for the headless Service.
            async with Client(f"ipv4:{addresses}", timeout_s=60) as client:
                load = Load(client)
                async with load.working():
                    before = await load.more(20)
                    seconds = await old.terminate()
                    gone = load.done.copy()
                    await load.more(20)
            log = old.logs()["gateway"]

    assert "predicted_iou=" in said
    events = [json.loads(line) for line in log.splitlines() if "{" in line]
    (serving,) = (each for each in events if each.get("event") == "serving")
    assert serving["transport"] == "shared_memory"
    # Probes are answered, and nothing else without the word.
    assert codes["/v2/health/ready"] == 200
    assert codes["/v2/models/stats"] == codes["/v2/systemsharedmemory/status"] == 403
    assert load.failed == []
    assert seconds < old.grace_s
    # It had work, and work went on while it ended.
    assert gone["Predict"] > before["Predict"]
    assert sum(each.get("event") == "call" for each in events) > 10
    assert events[-1]["event"] == "stopped"


@pytest.mark.slow
async def test_a_gateway_outlives_a_triton_of_its_own() -> None:
    """The outage is told by typed errors, and not by gateways that go away."""
    objects = render({"topology": "split", "cache": SMALL})
    async with replica_of(objects, "triton") as triton:
        services = {"demo-samserve-triton:8001": f"127.0.0.1:{triton.port(8001)}"}
        async with replica_of(objects, services=services) as gateway:
            address = f"127.0.0.1:{gateway.port(50051)}"
            said = await helm_test(objects, address)
            await triton.terminate()
            admin = gateway.port(8081)
            await until(lambda: says(admin, "samserve_engine_ready 0.0"))
            ready = await status(admin, "/readyz")
            async with Client(address, timeout_s=10) as client:
                with pytest.raises(Unavailable) as told:
                    await client.embed(pictures.png())
            await gateway.terminate()
            log = gateway.logs()["gateway"]

    assert "predicted_iou=" in said
    assert ready == 200
    assert told.value.reason == "ENGINE_UNAVAILABLE"
    assert '"transport": "message"' in log


@pytest.mark.slow
async def test_tls_keys_and_policy_come_from_secrets(
    key_file: KeyFile, authority: trustme.CA
) -> None:
    """`helm test` gets in with a client certificate and a key, and not without the key."""
    values: dict[str, Any] = {
        "engine": "onnx",
        "cache": {"memory": "64Mi"},
        "tls": {"secret": "server", "clientCaSecret": "ca"},
        "auth": {
            "apiKeys": {"secret": "keys"},
            "policy": "version = 1\n[quotas.default]\nrequests_per_s = 100\n",
        },
        "test": {"caSecret": "ca", "clientSecret": "client", "tokenSecret": "token"},
    }
    token = key_file.add("tests", "embed", "predict")
    secrets = {
        "server": pair(authority.issue_cert("127.0.0.1")),
        "ca": {"ca.crt": authority.cert_pem.bytes()},
        "client": pair(authority.issue_cert("tests.example")),
        "keys": {"keys.toml": key_file.path.read_bytes()},
        "token": {"token": token.encode()},
    }
    objects = render(values)
    async with replica_of(objects, secrets=secrets) as pod:
        address = f"127.0.0.1:{pod.port(50051)}"
        said = await helm_test(objects, address, secrets)
        keyless = render({**values, "test": {**values["test"], "tokenSecret": ""}})
        with pytest.raises(HarnessError, match=r"UNAUTHENTICATED|credential"):
            await helm_test(keyless, address, secrets)
        await pod.terminate()

    assert "predicted_iou=" in said
