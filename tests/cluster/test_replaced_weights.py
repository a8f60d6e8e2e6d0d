"""Gateways that share a cluster while the weights of their model are replaced."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from samserve.engines.fake import FakeEngine
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from harness.triton.server import TritonServer
from tests import sample_images
from tests.cluster.gateways import LocalGateway, local_gateway, local_gateways
from tests.cluster.load import numbered_image
from tests.engines.triton.test_weights import EXPLICIT, by_load
from tests.engines.triton.traffic import NAME, Traffic, Weights
from tests.engines.weights import Versions, versions_of, write_version
from tests.rpc.errors import failure_of
from tests.support.waiting import until


def serves(gateway: LocalGateway, digest: str) -> bool:
    """Return whether the gateway serves these weights."""
    return gateway.service.engine.models[NAME].digest == digest


async def test_a_new_decoder_of_the_same_encoder_causes_no_encode(
    cluster: Cluster, tmp_path: Path
) -> None:
    prompts = [sample_images.point_prompt()]
    models = {"old": (1, 1), "new decoder": (1, 2), "new": (2, 2)}
    sections = {}
    for name, (encoder, decoder) in models.items():
        write_version(tmp_path / name, NAME, encoder, decoder=decoder)
        sections[name] = {"engine": {"kind": "onnx", "model_repository": tmp_path / name}}
    async with (
        local_gateway(cluster, sections["old"]) as old,
        local_gateway(cluster, sections["new decoder"]) as new_decoder,
        local_gateway(cluster, sections["new"]) as new,
    ):
        started = await encodes(new_decoder)
        embedding = (await old.stub.Embed(pb.EmbedRequest(image=numbered_image(1)))).embedding
        by_id = pb.PredictRequest(
            embedding_id=embedding.id, prompts=prompts, multimask=pb.MULTIMASK_ALL
        )
        # From the cluster, then from the local tier.
        responses = [await new_decoder.stub.Predict(by_id) for _ in range(2)]
        again = await new_decoder.stub.Embed(pb.EmbedRequest(image=numbered_image(1)))
        failure = await failure_of(new.stub.Predict(by_id))
        kept = await old.stub.Predict(by_id)

        assert await encodes(new_decoder) == started
    assert [versions(response) for response in responses] == [Versions(1, 2)] * 2
    assert (again.embedding.id, again.embedding.cached) == (embedding.id, True)
    assert failure.reason == "EMBEDDING_NOT_FOUND"
    assert versions(kept) == Versions(1, 1)


async def test_models_that_share_an_encoder_use_their_own_decoders(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name, decoder in (("first", 1), ("second", 2)):
        write_version(tmp_path, name, 1, decoder=decoder)
    sections = {"engine": {"kind": "onnx", "model_repository": tmp_path}}
    found = {}
    async with local_gateways(cluster, sections) as (embedding, predicting):
        for name in ("first", "second"):
            request = pb.EmbedRequest(image=numbered_image(1), model=name)
            embedding_id = (await embedding.stub.Embed(request)).embedding.id
            by_id = pb.PredictRequest(
                embedding_id=embedding_id,
                prompts=[sample_images.point_prompt()],
                multimask=pb.MULTIMASK_ALL,
            )
            found[name] = [
                versions(await gateway.stub.Predict(by_id)) for gateway in (embedding, predicting)
            ]

    assert found == {"first": [Versions(1, 1)] * 2, "second": [Versions(1, 2)] * 2}


async def encodes(gateway: LocalGateway) -> float:
    return await gateway.metric("samserve_engine_runs_total", network="encoder")


def versions(response: pb.PredictResponse) -> Versions:
    return versions_of({m.token_index: m.predicted_iou for m in response.results[0].masks})


@pytest.mark.slow
async def test_values_in_the_cluster_are_of_the_weights_of_their_id(
    cluster: Cluster, tmp_path: Path
) -> None:
    weights = Weights(tmp_path / "models")
    weights.write(1)
    with TritonServer(weights.repository, log=tmp_path / "log", extra_args=EXPLICIT) as server:
        sections = {
            "engine": {"kind": "triton"},
            "triton": {"url": server.grpc_address, "startup_timeout_s": 60.0},
            "cache": {"local": {"capacity_bytes": 1 << 30}},
        }
        async with local_gateways(cluster, sections) as both:
            all_traffic = [Traffic((each.service, each.stub), weights) for each in both]
            async with all_traffic[0].running(), all_traffic[1].running():
                await asyncio.gather(*(traffic.progress() for traffic in all_traffic))
                await asyncio.to_thread(partial(by_load, server, weights, 2))
                for each in both:
                    await until(partial(serves, each, weights.infos[2].digest))
                await asyncio.gather(*(traffic.progress() for traffic in all_traffic))
    # New gateways read everything from the cluster.
    for info in weights.infos.values():
        async with local_gateway(cluster, engine=FakeEngine(model=info)) as reader:
            for traffic in all_traffic:
                await traffic.check_cache(reader.service.cache)
                print(traffic)

    assert [traffic.mismatches for traffic in all_traffic] == [[], []]
    assert sum(traffic.cached for traffic in all_traffic) > 0
