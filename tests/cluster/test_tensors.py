"""Embeddings of several tensors, from the encoder through both tiers to the decoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from samserve.cache.shared import value_format
from samserve.engines.fake import MODEL, FakeEngine
from samserve.types import Array, EmbeddingKey, TensorSpec
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests import sample_images
from tests.cluster.gateways import LocalGateway, local_gateway
from tests.support.waiting import until

HALF, SINGLE = np.dtype(np.float16), np.dtype(np.float32)
COARSE = TensorSpec("image_embedding", HALF, (256, 64, 64))
MIDDLE = TensorSpec("high_res_1", SINGLE, (64, 128, 128))
FINE = TensorSpec("high_res_0", HALF, (32, 256, 256))


async def tensors(gateway: LocalGateway, embedding_id: str) -> dict[str, Array]:
    async with gateway.service.cache.lease(EmbeddingKey("default", embedding_id)) as embedding:
        return {name: tensor.copy() for name, tensor in embedding.tensors.items()}


@pytest.mark.parametrize("specs", [(COARSE, FINE), (FINE, MIDDLE, COARSE)], ids=["two", "three"])
async def test_every_tensor_passes_through_both_tiers_to_the_decoder(
    cluster: Cluster, specs: tuple[TensorSpec, ...]
) -> None:
    engines = [FakeEngine(model=replace(MODEL, embedding=specs)) for _ in range(2)]
    pixels = sample_images.noise(1024, 1024)
    image = pb.Image(encoded=sample_images.encode(pixels))
    async with (
        local_gateway(cluster, engine=engines[0]) as first,
        local_gateway(cluster, engine=engines[1]) as second,
    ):
        begun = engines[1].counts["encode_begun"]
        embedding_id = (await first.stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        by_id = pb.PredictRequest(embedding_id=embedding_id, prompts=[sample_images.point_prompt()])
        responses = [await each.stub.Predict(by_id) for each in (first, second)]
        embeddings = [await tensors(each, embedding_id) for each in (first, second)]
        (listed,) = (await second.stub.ListModels(pb.ListModelsRequest())).models

    assert engines[1].counts["encode_begun"] == begun
    assert responses[0].results == responses[1].results
    assert listed.embedding_bytes == sum(spec.nbytes for spec in specs)
    for each in embeddings:
        assert [TensorSpec(name, t.dtype, t.shape) for name, t in each.items()] == list(specs)
        for spec in specs:
            cells = colours(pixels, spec.shape[1])
            assert np.allclose(each[spec.name][:3], cells, atol=0.1)
            assert not each[spec.name][3:].any()


def colours(pixels: np.ndarray, side: int) -> np.ndarray:
    """Return the mean colours of the cells of an image in the model frame: ``[3, side, side]``."""
    cell = 1024 // side
    return pixels.reshape(side, cell, side, cell, 3).mean(axis=(1, 3)).transpose(2, 0, 1)


async def test_a_cancelled_read_does_not_free_memory_that_is_still_written(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copying a large value into its slot takes place in a thread, which cannot be cancelled."""
    begun, go = asyncio.Event(), threading.Event()
    loop, copy = asyncio.get_running_loop(), value_format.Value.copy_into

    def held(value: value_format.Value, tensors: Mapping[str, Array]) -> None:
        loop.call_soon_threadsafe(begun.set)
        go.wait(60)
        copy(value, tensors)

    model = replace(MODEL, embedding=(FINE, MIDDLE, COARSE))
    async with local_gateway(cluster, engine=FakeEngine(model=model)) as first:
        image = pb.Image(encoded=sample_images.png())
        embedding_id = (await first.stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        async with local_gateway(cluster, engine=FakeEngine(model=model)) as second:
            cache, key = second.service.cache, EmbeddingKey("default", embedding_id)
            monkeypatch.setattr(value_format.Value, "copy_into", held)
            reading = asyncio.create_task(tensors(second, embedding_id))
            await begun.wait()
            reading.cancel()
            await asyncio.wait([reading])
            assert cache.stats().quarantined_bytes == model.embedding_bytes
            assert cache.stats().bytes == model.embedding_bytes
            go.set()
            await until(lambda: cache.stats().bytes == 0)

            assert cache.stats().quarantined_bytes == 0
            async with cache.lease(key) as embedding:
                assert embedding.tensors["high_res_0"].any()
