"""Gateways that share a cluster while the weights of their model change under its name."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from samserve.engines.fake import FakeEngine

from harness.cluster.cluster import Cluster
from harness.triton.server import TritonServer
from tests.cluster.gateways import LocalGateway, local_gateway, local_gateways
from tests.engines.triton.drill import NAME, Drill, Weights
from tests.engines.triton.test_weights import EXPLICIT, by_load
from tests.support.waiting import until


def serves(gateway: LocalGateway, digest: str) -> bool:
    """Tell whether the gateway has found these weights."""
    return gateway.service.engine.models[NAME].digest == digest


@pytest.mark.slow
async def test_nothing_in_the_cluster_is_of_other_weights_than_its_id(
    cluster: Cluster, tmp_path: Path
) -> None:
    weights = Weights(tmp_path / "models")
    weights.write(1)
    with TritonServer(weights.repository, log=tmp_path / "log", extra_args=EXPLICIT) as server:
        sections = {
            "engine": {"kind": "triton"},
            "triton": {"url": server.grpc_address, "startup_s": 60.0},
            "store": {"capacity_bytes": 1 << 30},
        }
        async with local_gateways(cluster, sections) as both:
            drills = [Drill((each.service, each.stub), weights) for each in both]
            async with drills[0].running(), drills[1].running():
                await asyncio.gather(*(drill.progress() for drill in drills))
                await asyncio.to_thread(partial(by_load, server, weights, 2))
                for each in both:
                    await until(partial(serves, each, weights.infos[2].digest))
                await asyncio.gather(*(drill.progress() for drill in drills))
    # Gateways that have seen none of them have nothing but what lies in the cluster.
    for info in weights.infos.values():
        async with local_gateway(cluster, engine=FakeEngine(model=info)) as reader:
            for drill in drills:
                await drill.inspect(reader.service.store)
                print(drill)

    assert [drill.wrong for drill in drills] == [[], []]
    assert sum(drill.stored for drill in drills) > 0
