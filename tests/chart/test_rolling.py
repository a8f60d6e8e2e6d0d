"""A rolling update of gateways behind an Envoy: no call fails."""

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
from tests.chart.running import Load, replica_of, shared_cache
from tests.support.waiting import until


def logged_calls(pod: Pod) -> int:
    """Return the number of calls that a gateway has logged."""
    return pod.logs()["gateway"].count('"event": "rpc"')


@pytest.mark.slow
async def test_rolling_update_fails_no_call(cluster: Cluster) -> None:
    """With a surge pod, or, as without a free GPU, with the new pod after the old one has ended."""
    values: dict[str, Any] = {
        "engine": "onnx",
        "replicas": 2,
        **shared_cache(cluster),
        "shutdown": {"drainDelaySeconds": 2, "gracePeriodSeconds": 20},
    }
    objects = render(values)
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(replica_of(objects)) for _ in range(2)]
        envoy = stack.enter_context(EnvoyProxy([pod.port(50051) for pod in running]))
        client = await stack.enter_async_context(Client(envoy.target, timeout_s=60))
        load = Load(client)
        async with load.running():
            await load.wait_for(10)
            for surge in (True, False):
                if surge:
                    running.append(await stack.enter_async_context(replica_of(objects)))
                # Kubernetes removes a pod from the endpoints when its termination starts.
                old = running.pop(0)
                envoy.use([pod.port(50051) for pod in running])
                before: Counter[str] = load.completed.copy()
                assert await old.terminate() < old.grace_s
                assert load.completed["Predict"] > before["Predict"]
                if not surge:
                    running.append(await stack.enter_async_context(replica_of(objects)))
                envoy.use([pod.port(50051) for pod in running])
                await load.wait_for(10)
            # Until each of them has also served embeddings of the others.
            await until(lambda: all(logged_calls(pod) > 10 for pod in running))

    assert load.errors == []
