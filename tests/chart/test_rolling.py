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
from tests.support.waiting import until


def answered(pod: Pod) -> int:
    """Calls that a gateway has logged since it was started."""
    return pod.logs()["gateway"].count('"event": "call"')


@pytest.mark.slow
async def test_gateways_are_replaced_in_turn_and_no_call_fails(cluster: Cluster) -> None:
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
        client = await stack.enter_async_context(Client(envoy.target, timeout_s=60))
        load = Load(client)
        async with load.working():
            await load.more(10)
            for surge in (True, False):
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
            # Until each of them has served what the others have embedded, too.
            await until(lambda: all(answered(pod) > 10 for pod in running))

    assert load.failed == []
