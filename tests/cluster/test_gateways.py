"""Gateways that share a cluster: what one has, all have; what one forgets, all forget."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests import chosen, pictures
from tests.cluster.gateways import Gateway, gateway, gateways
from tests.cluster.load import Clients, picture
from tests.rpc.errors import read


def scene() -> pb.Image:
    """A picture with something on it, so that the default model's masks depend on it."""
    y, x = np.mgrid[:240, :320]
    pixels = np.full((240, 320, 3), 60, np.uint8)
    pixels[(x - 110) ** 2 + (y - 120) ** 2 < 70**2] = (220, 60, 40)
    pixels[40:120, 220:300] = (40, 90, 230)
    return pb.Image(encoded=pictures.file_of(np.asarray(Image.fromarray(pixels))))


def request_for(**source: Any) -> pb.PredictRequest:
    return pb.PredictRequest(
        **source,
        prompts=[pictures.click(110, 120), pictures.click(260, 80)],
        multimask=pb.MULTIMASK_ALL,
        include_low_res_logits=True,
    )


async def masks(server: Gateway, embedding_id: str) -> pb.PredictResponse:
    return await server.stub.Predict(request_for(embedding_id=embedding_id), timeout=20)


async def gone_after(server: Gateway, embedding_id: str) -> float:
    """Seconds until the server does not find it."""
    started = time.monotonic()
    while time.monotonic() < started + 5:
        failure = None
        try:
            await masks(server, embedding_id)
        except grpc.aio.AioRpcError as error:
            failure = read(error)
        if failure is not None:
            assert failure.reason == "EMBEDDING_NOT_FOUND"
            return time.monotonic() - started
    raise AssertionError("it is still there")


async def test_what_one_gateway_encodes_all_answer_and_a_restart_loses_nothing(
    cluster: Cluster,
) -> None:
    async with gateway(cluster, engine__kind="onnx") as first:
        async with gateway(cluster, engine__kind="onnx") as second:
            embedded = await first.stub.Embed(pb.EmbedRequest(image=scene()))
            assert embedded.embedding.stored == pb.STORED_SHARED
            here = await masks(first, embedded.embedding.id)
            there = await masks(second, embedded.embedding.id)
            again = await masks(second, embedded.embedding.id)
            assert await second.metric("samserve_engine_runs_total", network="encoder") <= 1
        async with gateway(cluster, engine__kind="onnx") as third:
            after = await masks(third, embedded.embedding.id)
            deleted = await first.stub.DeleteEmbedding(
                pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
            )

            assert deleted.deleted
            assert await gone_after(first, embedded.embedding.id) < 1
            assert await gone_after(third, embedded.embedding.id) < 1

    async with gateway(None, engine__kind="onnx") as alone:
        fresh = await alone.stub.Predict(request_for(image=scene()))
        assert not fresh.embedding.cached
    # Areas tell that the masks are of the two things, and not of nothing.
    areas = [mask.area for result in here.results for mask in result.masks]
    assert len(set(areas)) > 2
    for other in (there, again, after, fresh):
        assert other.results == here.results
        assert other.embedding.image_size == here.embedding.image_size


async def test_gateways_before_triton_share_what_lies_in_its_memory(cluster: Cluster) -> None:
    server = await asyncio.to_thread(chosen.triton_server, chosen.default_repository())
    triton = {
        "engine__kind": "triton",
        "triton__url": server.grpc_address,
        "triton__shared_memory": "required",
    }
    async with gateways(cluster, **triton) as (first, second):
        embedded = await first.stub.Embed(pb.EmbedRequest(image=scene()))
        here = await masks(first, embedded.embedding.id)
        there = await masks(second, embedded.embedding.id)

        assert embedded.embedding.stored == pb.STORED_SHARED
        assert there.results == here.results
        assert (
            await second.metric("samserve_cache_requests_total", tier="shared", result="hit") == 1
        )


async def test_gateways_that_encode_the_same_picture_at_once_encode_once_each_and_agree(
    cluster: Cluster,
) -> None:
    async with gateways(cluster, engine__kind="onnx") as pair:
        before = [
            await server.metric("samserve_engine_runs_total", network="encoder", outcome="ok")
            for server in pair
        ]
        request = pb.EmbedRequest(image=scene())
        calls = [server.stub.Embed(request) for server in pair for _ in range(5)]
        answers = await asyncio.gather(*calls)
        after = [
            await server.metric("samserve_engine_runs_total", network="encoder", outcome="ok")
            for server in pair
        ]
        (embedding_id,) = {answer.embedding.id for answer in answers}
        one, other = [await masks(server, embedding_id) for server in pair]

    assert {answer.embedding.stored for answer in answers} == {pb.STORED_SHARED}
    assert all(now - then <= 1 for now, then in zip(after, before, strict=True))
    assert sum(after) - sum(before) >= 1
    assert one.results == other.results


async def test_a_delete_reaches_an_embedding_that_another_gateway_is_making(
    cluster: Cluster,
) -> None:
    async with gateways(cluster, engine__kind="onnx") as (first, second):
        embedded = await first.stub.Embed(pb.EmbedRequest(image=scene()))
        await first.stub.DeleteEmbedding(
            pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
        )
        pending = asyncio.create_task(_embed(second))
        while await second.metric("samserve_engine_running", network="encoder") < 1:
            await asyncio.sleep(0.005)
        await first.stub.DeleteEmbedding(
            pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
        )
        await pending

        assert await gone_after(first, embedded.embedding.id) < 1
        assert await gone_after(second, embedded.embedding.id) < 1
        # Who asks again afterwards gets it again, everywhere.
        embedded = await second.stub.Embed(pb.EmbedRequest(image=scene()))
        assert embedded.embedding.stored == pb.STORED_SHARED
        await masks(first, embedded.embedding.id)


async def test_an_embed_after_a_delete_elsewhere_does_not_join_what_began_before_it(
    cluster: Cluster,
) -> None:
    async with gateways(cluster, engine__kind="onnx") as (first, second):
        embedding_id = (await _embed(first)).embedding.id
        delete = pb.DeleteEmbeddingRequest(embedding_id=embedding_id)
        await first.stub.DeleteEmbedding(delete)
        early = asyncio.create_task(_embed(second))
        while await second.metric("samserve_engine_running", network="encoder") < 1:
            await asyncio.sleep(0.005)
        await first.stub.DeleteEmbedding(delete)
        late = [asyncio.create_task(_embed(second)) for _ in range(3)]
        await asyncio.gather(early, *late)

        for server in (first, second):
            assert (await masks(server, embedding_id)).results
        assert all(task.result().embedding.stored == pb.STORED_SHARED for task in late)


async def _embed(server: Gateway) -> pb.EmbedResponse:
    return await server.stub.Embed(pb.EmbedRequest(image=scene()))


async def test_a_hundred_misses_of_one_id_are_one_read(cluster: Cluster) -> None:
    async with gateways(cluster) as (first, second):
        clients = Clients([first])
        embedding = await clients.embed(1)
        assert embedding is not None
        others = Clients([second], ids=clients.ids)
        found = await asyncio.gather(*(others.click(1) for _ in range(100)))

        assert set(found) == {"found"}
        assert (
            await second.metric("samserve_cache_requests_total", tier="shared", result="hit") == 1
        )


async def test_embed_extends_the_life_in_both_tiers(cluster: Cluster) -> None:
    async with gateways(cluster, store__ttl_s=2) as (first, second):
        clients = Clients([first, second])
        embedding = await clients.embed(1)
        assert embedding is not None
        for _ in range(3):
            await asyncio.sleep(1)
            renewed = await Clients([first]).embed(1)
            assert renewed is not None
            assert renewed.cached
        # Three seconds after a life of two began; the other gateway has never seen it.
        assert await Clients([second], ids=clients.ids).click(1) == "found"
        await asyncio.sleep(2.1)
        assert await Clients([second], ids=clients.ids).click(1) == "EMBEDDING_NOT_FOUND"


async def test_durable_means_a_replica_has_it(doomed_cluster: Cluster) -> None:
    cluster = doomed_cluster
    async with gateway(cluster) as server:
        clients = Clients([server])
        fresh, cached = await clients.embed(1, durable=True), await clients.embed(1, durable=True)
        assert fresh is not None
        assert cached is not None
        assert (fresh.stored, cached.stored) == (pb.STORED_SHARED, pb.STORED_SHARED)
        assert (fresh.cached, cached.cached) == (False, True)
        for master in cluster.masters:
            for replica in cluster.replicas_of(master):
                await asyncio.to_thread(replica.kill)

        refused = await asyncio.gather(*(clients.embed(n, durable=True) for n in (1, 2)))

        assert refused == [None, None]
        # It is stored nevertheless, for whoever does not ask for that much.
        assert (await clients.embed(2)).stored == pb.STORED_SHARED  # type: ignore[union-attr]
    assert clients.tally.unexpected == []


async def test_without_a_shared_cache_nothing_is_durable_and_everything_is_local() -> None:
    async with gateway(None) as server:
        clients = Clients([server])
        assert await clients.embed(1, durable=True) is None
        embedding = await clients.embed(1)
        assert embedding is not None
        assert (embedding.stored, embedding.cached) == (pb.STORED_LOCAL, True)


async def test_values_of_another_model_are_misses_and_stay(cluster: Cluster) -> None:
    async with gateway(cluster) as server, gateway(cluster, engine__kind="onnx") as other:
        clients = Clients([server])
        await clients.embed(1)
        keys = cluster.keys()
        assert await Clients([other], ids=clients.ids).click(1) == "EMBEDDING_NOT_FOUND"
        assert (
            await other.metric("samserve_cache_requests_total", tier="shared", result="model") == 1
        )
        assert set(keys) <= set(cluster.keys())
        assert await clients.click(1) == "found"


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["redis"])
async def test_redis_serves_as_well(flavour: str) -> None:
    with Cluster(masters=3, replicas=1, flavour=flavour) as cluster:  # type: ignore[arg-type]
        async with gateways(cluster) as (first, second):
            clients = Clients([first])
            for number in range(6):
                embedding = await clients.embed(number, durable=True)
                assert embedding is not None
                assert embedding.stored == pb.STORED_SHARED
            others = Clients([second], ids=clients.ids)
            assert {await others.click(number) for number in range(6)} == {"found"}
            request = pb.DeleteEmbeddingRequest(embedding_id=clients.ids[0])
            await second.stub.DeleteEmbedding(request)
            await asyncio.sleep(1)
            assert await clients.click(0) == "EMBEDDING_NOT_FOUND"
            await first.stub.Embed(pb.EmbedRequest(image=picture(0)))
            assert await others.click(0) == "found"
    assert clients.tally.unexpected == []
