"""Gateways that share a cluster while the weights of their model change under its name."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest
from samserve.engines.fake import FakeEngine
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from harness.triton.server import TritonServer
from tests import pictures
from tests.cluster.gateways import LocalGateway, local_gateway, local_gateways
from tests.cluster.load import picture
from tests.engines.triton.drill import NAME, Drill, Weights
from tests.engines.triton.test_weights import EXPLICIT, by_load
from tests.engines.weights import Versions, versions_of, write_version
from tests.rpc.errors import failure_of
from tests.support.waiting import until


def serves(gateway: LocalGateway, digest: str) -> bool:
    """Tell whether the gateway has found these weights."""
    return gateway.service.engine.models[NAME].digest == digest


async def test_another_decoder_of_the_same_encoder_encodes_nothing_again(
    cluster: Cluster, tmp_path: Path
) -> None:
    click = [pictures.click()]
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
        embedding = (await old.stub.Embed(pb.EmbedRequest(image=picture(1)))).embedding
        by_id = pb.PredictRequest(
            embedding_id=embedding.id, prompts=click, multimask=pb.MULTIMASK_ALL
        )
        # From the cluster, then from memory.
        answers = [await new_decoder.stub.Predict(by_id) for _ in range(2)]
        again = await new_decoder.stub.Embed(pb.EmbedRequest(image=picture(1)))
        gone = await failure_of(new.stub.Predict(by_id))
        kept = await old.stub.Predict(by_id)

        assert await encodes(new_decoder) == started
    assert [versions(answer) for answer in answers] == [Versions(1, 2)] * 2
    assert (again.embedding.id, again.embedding.cached) == (embedding.id, True)
    assert gone.reason == "EMBEDDING_NOT_FOUND"
    assert versions(kept) == Versions(1, 1)


async def test_models_that_share_an_encoder_each_answer_with_their_own_decoder(
    cluster: Cluster, tmp_path: Path
) -> None:
    for name, decoder in (("first", 1), ("second", 2)):
        write_version(tmp_path, name, 1, decoder=decoder)
    sections = {"engine": {"kind": "onnx", "model_repository": tmp_path}}
    found = {}
    async with local_gateways(cluster, sections) as (embedding, clicking):
        for name in ("first", "second"):
            request = pb.EmbedRequest(image=picture(1), model=name)
            embedding_id = (await embedding.stub.Embed(request)).embedding.id
            by_id = pb.PredictRequest(
                embedding_id=embedding_id,
                prompts=[pictures.click()],
                multimask=pb.MULTIMASK_ALL,
            )
            found[name] = [
                versions(await gateway.stub.Predict(by_id)) for gateway in (embedding, clicking)
            ]

    assert found == {"first": [Versions(1, 1)] * 2, "second": [Versions(1, 2)] * 2}


async def encodes(gateway: LocalGateway) -> float:
    return await gateway.metric("samserve_engine_runs_total", network="encoder")


def versions(answer: pb.PredictResponse) -> Versions:
    return versions_of({m.token_index: m.predicted_iou for m in answer.results[0].masks})


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
