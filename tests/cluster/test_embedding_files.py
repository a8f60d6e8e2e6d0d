"""Embeddings of files in the shared cache: other gateways serve them."""

from __future__ import annotations

from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests import sample_images
from tests.cluster.gateways import local_gateway, local_gateways
from tests.embedding_files.files import ENABLED, embed, get, put
from tests.rpc.errors import failure_of

SECTIONS = {"embedding_files": ENABLED}


async def test_embedding_of_a_file_is_served_by_other_gateways(cluster: Cluster) -> None:
    async with local_gateways(cluster, SECTIONS) as (one, two):
        chunks = await get(one.stub, await embed(one.stub))
        stored = (await put(one.stub, chunks)).embedding
        request = pb.PredictRequest(embedding_id=stored.id, prompts=[sample_images.point_prompt()])
        predicted = await two.stub.Predict(request)
        again = (await put(two.stub, chunks)).embedding

    # Both have ended; the cluster has the embedding.
    async with local_gateway(cluster, SECTIONS) as third:
        masks = pb.AutoMaskRequest(
            embedding_id=stored.id, options=pb.AutoMaskOptions(points_per_side=2)
        )
        events = [event async for event in third.stub.AutoMask(masks)]
        returned = await get(third.stub, stored.id)
        delete = pb.DeleteEmbeddingRequest(embedding_id=stored.id)
        deleted = (await third.stub.DeleteEmbedding(delete)).deleted

    async with local_gateway(cluster, SECTIONS) as fourth:
        failure = await failure_of(fourth.stub.Predict(request))
        restored = (await put(fourth.stub, chunks)).embedding

    assert stored.stored == again.stored == restored.stored == pb.STORED_SHARED
    assert predicted.embedding.id == again.id == restored.id == stored.id
    assert (stored.cached, again.cached, restored.cached) == (False, True, False)
    assert events[-1].summary.embedding.id == stored.id
    assert b"".join(returned) == b"".join(chunks)
    assert deleted
    assert failure.reason == "EMBEDDING_NOT_FOUND"
