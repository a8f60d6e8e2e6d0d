"""A rolling update: gateways behind an Envoy are replaced in turn, and no call fails."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from typing import Any

import pytest
from samserve.client import Client

from harness.cluster.cluster import Cluster
from harness.envoy.proxy import EnvoyProxy
from harness.pod.pod import Pod
from tests.chart.rendered import render
from tests.chart.running import Load, replica_of


def answered(pod: Pod) -> int:
    """Calls that a gateway has logged since it was started."""
    return pod.logs()["gateway"].count('"event": "call"')


@pytest.mark.slow
@pytest.mark.parametrize("surge", [True, False], ids=["surge", "no surge"])
async def test_gateways_are_replaced_in_turn_and_no_call_fails(
    surge: bool, cluster: Cluster
) -> None:
    """A new one first, or, where no GPU is free for it, after the old one has ended."""
    values: dict[str, Any] = {
        "engine": "onnx",
        "replicas": 2,
        "cache": {"memory": "64Mi", "nodes": list(cluster.addresses[:2])},
        "shutdown": {"drainSeconds": 2, "graceSeconds": 20},
    }
    objects = render(values)
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(replica_of(objects)) for _ in range(2)]
        envoy = stack.enter_context(EnvoyProxy([pod.port(50051) for pod in running]))
        client = await stack.enter_async_context(Client(envoy.target, timeout_s=30))
        load = Load(client)
        async with load.working():
            await load.more(10)
            for _ in range(2):
                if surge:
                    running.append(await stack.enter_async_context(replica_of(objects)))
                # Kubernetes takes a pod from the endpoints when it is told to end.
                old = running.pop(0)
                envoy.use([pod.port(50051) for pod in running])
                before: Counter[str] = load.done.copy()
                assert await old.terminate() < old.grace_s
                assert load.done["Predict"] > before["Predict"]
                if not surge:
                    running.append(await stack.enter_async_context(replica_of(objects)))
                envoy.use([pod.port(50051) for pod in running])
                await load.more(10)
        after = [answered(pod) for pod in running]

    assert load.failed == []
    # The new ones serve, each what the others have embedded, too.
    assert all(count > 10 for count in after)
