"""Gateways that share a cluster: embeddings and deletions are visible to all of them."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
from PIL import Image
from samserve.segmentation.encode import EncodeJobs
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from harness.cluster.ports import Ports
from tests import engine_choice, sample_images
from tests.cluster.gateways import (
    LONG_TIMEOUT_OPTIONS,
    Gateway,
    LocalGateway,
    gateways,
    local_gateway,
    local_gateways,
    until_not_found,
)
from tests.cluster.load import Clients, numbered_image
from tests.rpc.errors import failure_of
from tests.support.engines import PausedEngine
from tests.support.waiting import until

ONNX = {"engine": {"kind": "onnx"}}


def scene() -> pb.Image:
    """Return an image with objects, so that the masks of the default model depend on it."""
    y, x = np.mgrid[:240, :320]
    pixels = np.full((240, 320, 3), 60, np.uint8)
    pixels[(x - 110) ** 2 + (y - 120) ** 2 < 70**2] = (220, 60, 40)
    pixels[40:120, 220:300] = (40, 90, 230)
    return pb.Image(encoded=sample_images.encode(np.asarray(Image.fromarray(pixels))))


def request_for(**source: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        **source,
        prompts=[sample_images.point_prompt(110, 120), sample_images.point_prompt(260, 80)],
        multimask=pb.MULTIMASK_ALL,
        include_low_res_logits=True,
    )


async def masks(server: Gateway | LocalGateway, embedding_id: str) -> pb.PredictResponse:
    return await server.stub.Predict(request_for(embedding_id=embedding_id), timeout=60)


async def embed(server: Gateway | LocalGateway) -> pb.EmbedResponse:
    return await server.stub.Embed(pb.EmbedRequest(image=scene()), timeout=60)


async def delete(server: Gateway | LocalGateway, embedding_id: str) -> bool:
    request = pb.DeleteEmbeddingRequest(embedding_id=embedding_id)
    return (await server.stub.DeleteEmbedding(request, timeout=60)).deleted


async def test_all_gateways_use_an_embedding_also_after_a_restart(
    cluster: Cluster,
) -> None:
    async with gateways(cluster, engine__kind="onnx", **LONG_TIMEOUT_OPTIONS) as (first, second):
        embedded = await embed(first)
        embedding_id = embedded.embedding.id
        assert embedded.embedding.stored == pb.STORED_SHARED
        from_first = await masks(first, embedding_id)
        from_second = await masks(second, embedding_id)
        repeated = await masks(second, embedding_id)
        assert await second.metric("samserve_engine_runs_total", network="encoder") <= 1
    # Both gateways have ended; the local tier of the next one is empty.
    async with local_gateway(cluster, ONNX) as third:
        after = await masks(third, embedding_id)
        assert await delete(third, embedding_id)
        assert (await failure_of(masks(third, embedding_id))).reason == "EMBEDDING_NOT_FOUND"
    async with local_gateway(None, ONNX) as alone:
        fresh = await alone.stub.Predict(request_for(image=scene()))
        assert not fresh.embedding.cached
    # Different areas show that the masks are of the two objects.
    areas = [mask.area for result in from_first.results for mask in result.masks]
    assert len(set(areas)) > 2
    for other in (from_second, repeated, after, fresh):
        assert other.results == from_first.results
        assert other.embedding.image_size == from_first.embedding.image_size


async def test_gateways_with_triton_share_embeddings_in_shared_memory(cluster: Cluster) -> None:
    server = await asyncio.to_thread(
        engine_choice.triton_server, engine_choice.default_repository()
    )
    triton = {"url": server.grpc_address, "shared_memory": "required"}
    sections = {"engine": {"kind": "triton"}, "triton": triton}
    async with local_gateways(cluster, sections) as (first, second):
        embedded = await embed(first)
        from_first = await masks(first, embedded.embedding.id)
        from_second = await masks(second, embedded.embedding.id)

        assert embedded.embedding.stored == pb.STORED_SHARED
        assert from_second.results == from_first.results
        assert (
            await second.metric("samserve_cache_requests_total", tier="shared", result="hit") == 1
        )


async def test_gateways_that_encode_one_image_concurrently_agree_on_the_result(
    cluster: Cluster,
) -> None:
    engines = [PausedEngine(), PausedEngine()]
    async with AsyncExitStack() as stack:
        pair = [
            await stack.enter_async_context(local_gateway(cluster, engine=engine))
            for engine in engines
        ]
        warm_ups = [engine.counts["encode_finished"] for engine in engines]
        calls = [asyncio.create_task(embed(server)) for server in pair for _ in range(5)]
        for engine in engines:
            await engine.waiting.wait()
            engine.go.set()
        responses = await asyncio.gather(*calls)
        (embedding_id,) = {response.embedding.id for response in responses}
        one, other = [await masks(server, embedding_id) for server in pair]

    assert {response.embedding.stored for response in responses} == {pb.STORED_SHARED}
    for engine, warm_up in zip(engines, warm_ups, strict=True):
        assert engine.counts["encode_begun"] == engine.counts["encode_finished"] == warm_up + 1
    assert one.results == other.results


async def test_a_deletion_revokes_an_embedding_that_another_gateway_is_encoding(
    cluster: Cluster,
) -> None:
    engine = PausedEngine()
    async with (
        local_gateway(cluster) as first,
        local_gateway(cluster, engine=engine) as second,
    ):
        embedding_id = (await embed(first)).embedding.id
        assert await delete(first, embedding_id)
        pending = asyncio.create_task(embed(second))
        await engine.waiting.wait()
        await delete(first, embedding_id)
        engine.go.set()
        await pending

        for server in (first, second):
            await until_not_found(server, embedding_id)
        # A later Embed makes it available again, on all gateways.
        assert (await embed(second)).embedding.stored == pb.STORED_SHARED
        await masks(first, embedding_id)


async def test_an_embed_after_a_deletion_does_not_join_an_encode_from_before_it(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, joined = PausedEngine(), list[object]()
    encode = EncodeJobs.encode

    def joining(self: EncodeJobs, *arguments: Any) -> Any:
        joined.append(self)
        return encode(self, *arguments)

    monkeypatch.setattr(EncodeJobs, "encode", joining)
    async with (
        local_gateway(cluster) as first,
        local_gateway(cluster, engine=engine) as second,
    ):
        embedding_id = (await embed(first)).embedding.id
        await delete(first, embedding_id)
        early = asyncio.create_task(embed(second))
        await engine.waiting.wait()
        await delete(first, embedding_id)
        joined.clear()
        late = [asyncio.create_task(embed(second)) for _ in range(3)]
        await until(lambda: len(joined) == len(late))
        engine.go.set()
        await asyncio.gather(early, *late)

        for server in (first, second):
            assert (await masks(server, embedding_id)).results
        assert all(task.result().embedding.stored == pb.STORED_SHARED for task in late)


async def test_embed_renews_the_time_to_live_in_both_tiers(cluster: Cluster) -> None:
    async with local_gateway(cluster) as gateway:
        clients = Clients([gateway])
        embedding = await clients.embed(1)
        assert embedding is not None
        name = f"samserve:default:{embedding.id}"
        server = cluster.client(cluster.owner_of(name))
        ttl_ms = server.pttl(name)
        # As if most of the time to live had passed.
        server.pexpire(name, ttl_ms // 4)
        renewed = await clients.embed(1)

        assert renewed is not None
        assert renewed.cached
        assert renewed.expire_time.ToNanoseconds() > embedding.expire_time.ToNanoseconds()
        assert server.pttl(name) > ttl_ms // 2


async def test_durable_embed_succeeds_only_with_a_cluster(cluster: Cluster) -> None:
    async with local_gateway(cluster) as sharing:
        clients = Clients([sharing])
        fresh, again = [await clients.embed(1, durable=True) for _ in range(2)]
        assert fresh is not None
        assert again is not None
        assert {fresh.stored, again.stored} == {pb.STORED_SHARED}
        assert (fresh.cached, again.cached) == (False, True)
    async with local_gateway(None) as server:
        clients = Clients([server])
        assert await clients.embed(1, durable=True) is None
        embedding = await clients.embed(1)
        assert embedding is not None
        assert (embedding.stored, embedding.cached) == (pb.STORED_LOCAL, True)


async def test_a_call_with_the_image_uses_the_local_tier_during_an_outage() -> None:
    with Ports() as ports:
        (port,) = ports.reserve(1)
        shared = {"nodes": f"127.0.0.1:{port}", "revalidate_interval_s": 0, "stale_if_error_s": 0}
        async with local_gateway(None, {"cache": {"shared": shared}}) as server:
            clients = Clients([server])
            assert await clients.embed(1) is not None
            encodes = server.service.engine.counts["encode_begun"]
            assert await clients.predict(1) == "CACHE_UNAVAILABLE"
            request = pb.PredictRequest(
                image=numbered_image(1), prompts=[sample_images.point_prompt()]
            )
            response = await server.stub.Predict(request, timeout=60)

            assert response.embedding.cached
            assert server.service.engine.counts["encode_begun"] == encodes
            assert clients.tally.unexpected == []


@pytest.mark.slow
async def test_redis_is_supported() -> None:
    with Cluster(masters=3, replicas=1, flavour="redis") as cluster:
        async with local_gateways(cluster) as (first, second):
            clients = Clients([first])
            for number in range(6):
                assert await clients.stored(number, durable=True) == "STORED_SHARED"
            others = Clients([second], ids=clients.ids)
            assert {await others.predict(number) for number in range(6)} == {"found"}
            await delete(second, clients.ids[0])
            await until_not_found(first, clients.ids[0])
            await first.stub.Embed(pb.EmbedRequest(image=numbered_image(0)))
            assert await others.predict(0) == "found"
    assert clients.tally.unexpected == []
