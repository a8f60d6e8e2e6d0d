"""A version with another encoder: old ids are not found, and clients embed again."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from samserve.client import Client, Prompt
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.engines.promotion.clients import version_of
from tests.engines.promotion.models import NAME, write_model
from tests.engines.promotion.services import command, served
from tests.rpc.errors import failure_of
from tests.support.waiting import until


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "triton"])
async def test_old_ids_are_not_found_and_clients_embed_again(kind: str, tmp_path: Path) -> None:
    repository, new = tmp_path / "models", tmp_path / "new"
    write_model(repository, 1)
    digest = write_model(new, 2, encoder=2, name="tuned")
    async with served(kind, repository) as services:
        ((service, stub),) = services
        image = sample_images.image()
        old = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        options = pb.AutoMaskOptions(
            points_per_side=8, points_per_batch=1, pred_iou_thresh=0, stability_score_thresh=0
        )
        stream = stub.AutoMask(pb.AutoMaskRequest(embedding_id=old, options=options))
        events = aiter(stream)
        first = await anext(events)
        promoting = asyncio.create_task(command(services, repository, "promote", NAME, str(new)))
        await until(lambda: service.engine.models[NAME].digest == digest)
        by_id = pb.PredictRequest(embedding_id=old, prompts=[sample_images.point_prompt()])
        missing = await failure_of(stub.Predict(by_id))
        async with Client(service.address) as client:
            # The client sends the image, because the server does not find the id.
            prompt = Prompt(points=[(32, 24)])
            healed = await client.predict(old, [prompt], image=image.encoded)
        scores = [
            record.mask.predicted_iou
            async for response in events
            for record in response.masks.records
        ]
        promoted = await promoting
        rolled_back = await command(services, repository, "rollback", NAME)
        kept = await stub.Predict(by_id)

    assert first.HasField("progress")
    assert missing.reason == "EMBEDDING_NOT_FOUND"
    assert version_of(scores) == 1
    assert version_of(mask.predicted_iou for mask in healed.results[0]) == 2
    assert (promoted, rolled_back) == (0, 0)
    assert kept.embedding.cached
    assert version_of(mask.predicted_iou for mask in kept.results[0].masks) == 1
