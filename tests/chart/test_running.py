"""The rendered pod runs: its commands, files, ports, probes, shared memory, and its end."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from typing import Any

import pytest
from samserve.client import Client

from harness.cluster.cluster import Cluster
from harness.errors import HarnessError
from harness.pod.images import triton_arguments
from harness.program import DIRECT
from tests.chart.rendered import Object, case, container, render
from tests.chart.running import Load, helm_test, replica_of

SMALL = {"memory": "64Mi", "scratch": "64Mi"}


def test_arguments_of_production_that_the_harness_leaves_out() -> None:
    """One, and it is there: everything else reaches a real tritonserver."""
    given = container(render(), "triton")["args"]

    assert set(given) - set(triton_arguments(given)) == {"--allow-client-shm=true"}


async def status(port: int, path: str, **headers: str) -> int:
    """Ask Triton's HTTP API."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    try:
        with await asyncio.to_thread(DIRECT.open, request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


async def test_a_pod_without_triton_serves_and_ends_in_time() -> None:
    objects = render({"engine": "onnx", "cache": {"memory": "64Mi"}})
    async with replica_of(objects) as pod:
        said = await helm_test(objects, f"127.0.0.1:{pod.port(50051)}")
        await pod.terminate()

    assert "predicted_iou" in said or "IoU" in said


async def test_a_pod_that_cannot_start_says_why() -> None:
    objects = render({"engine": "onnx", "models": {"default": "nobody"}})

    with pytest.raises(HarnessError, match="nobody"):
        async with replica_of(objects):
            pass


@pytest.mark.slow
async def test_the_default_shape_runs(cluster: Cluster) -> None:
    """Models are copied, Triton starts, then the gateway shares its memory; `helm test` passes."""
    objects = render({**case("default"), "cache": SMALL})
    async with replica_of(objects) as pod:
        address = f"127.0.0.1:{pod.port(50051)}"
        said = await helm_test(objects, address)
        triton = pod.port(8000)
        codes = {
            path: await status(triton, path)
            for path in ("/v2/health/ready", "/v2/models/stats", "/v2/systemsharedmemory/status")
        }
        seconds = await pod.terminate()
        log = pod.logs()

    assert "IoU" in said or "predicted_iou" in said
    (serving,) = (line for line in log["gateway"].splitlines() if '"event": "serving"' in line)
    assert json.loads(serving)["transport"] == "shared_memory"
    # Probes are answered, and nothing else without the word.
    assert codes["/v2/health/ready"] == 200
    assert codes["/v2/models/stats"] == codes["/v2/systemsharedmemory/status"] == 403
    assert '"event": "stopped"' in log["gateway"]
    assert seconds < pod.grace_s


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnx", "triton"])
async def test_a_pod_that_is_replaced_fails_no_call(engine: str, cluster: Cluster) -> None:
    """As in a rolling update: one more pod, then the first is told to end, under load."""
    values: dict[str, Any] = {
        "engine": engine,
        "cache": {**SMALL, "nodes": list(cluster.addresses[:2])},
        "shutdown": {"drainSeconds": 2, "graceSeconds": 20},
    }
    objects: list[Object] = render(values)
    async with replica_of(objects) as old, replica_of(objects) as new:
        addresses = ",".join(f"127.0.0.1:{pod.port(50051)}" for pod in (old, new))
        # What DNS gives for the headless Service.
        async with Client(f"ipv4:{addresses}", timeout_s=30) as client:
            load = Load(client)
            async with load.working():
                before = await load.more(20)
                seconds = await old.terminate()
                gone = load.done.copy()
                await load.more(20)
        calls = [json.loads(line) for line in old.logs()["gateway"].splitlines() if "{" in line]

    assert load.failed == []
    assert seconds < old.grace_s
    # It had work, and work went on while it ended.
    assert gone["Predict"] > before["Predict"]
    assert sum(each.get("event") == "call" for each in calls) > 10
