"""Three families with embeddings of the published sizes on two gateways and one cluster."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest
from samserve.settings import Settings

from harness.cluster.cluster import Cluster
from tests.cluster.families_load import Load
from tests.cluster.gateways import LONG_TIMEOUT_OPTIONS, Gateway, gateway, gateways
from tests.engines.full_size import EMBEDDINGS
from tests.triton import servers

MIB = 1 << 20
# Fewer embeddings than the load has, so that some are evicted and read again.
CAPACITY = 64 * MIB
# docs/operations.md: embeddings, those in flight to and from three masters, the pool with Triton.
IN_FLIGHT = 2 * 3 * Settings().cache.shared.max_in_flight_bytes
POOL = Settings().triton.shared_memory_pool_bytes
# Requests and images are tiny here; activations, threads and freed memory are not.
ALLOCATOR = 64 * MIB


def memory(server: Gateway) -> int:
    rss: int = psutil.Process(server.process.pid).memory_info().rss
    return rss


async def total(servers: list[Gateway], name: str, **labels: str) -> float:
    return sum([await each.metric(name, **labels) for each in servers])


@pytest.mark.slow
async def test_every_answer_is_right_while_embeddings_of_three_families_cross_the_cluster(
    cluster: Cluster,
) -> None:
    models: Path = servers.full_size_repository()
    triton = await asyncio.to_thread(servers.full_size)
    settings = {
        **LONG_TIMEOUT_OPTIONS,
        "cache__local__capacity_bytes": CAPACITY,
        # Every gateway checks every click, so that deletions and losses would be noticed.
        "cache__shared__revalidate_interval_s": 0,
        "engine__kind": "triton",
        "triton__url": triton.grpc_address,
        "triton__shared_memory": "required",
    }
    async with gateways(cluster, **settings) as pair:
        base = [memory(each) for each in pair]
        load = Load(pair, tuple(EMBEDDINGS))
        await load.prepare(3)
        await asyncio.gather(load.click(4.0, rate=15.0), load.cross(4.0, rate=6.0))
        grown = [memory(each) - before for each, before in zip(pair, base, strict=True)]
        evictions = await total(pair, "samserve_cache_local_evictions_total")
        read = {"tier": "shared", "result": "hit"}
        hits = await total(pair, "samserve_cache_requests_total", **read)
    async with gateway(None, engine__kind="onnx", engine__model_repository=models) as alone:
        different = await load.differences(alone.stub)

    assert different == []
    assert load.crossed == 24
    assert len(load.clicks) > 20
    # Every embedding that crossed was read by the other gateway.
    assert hits >= load.crossed
    assert evictions > 0
    assert max(grown) <= CAPACITY + IN_FLIGHT + POOL + ALLOCATOR
