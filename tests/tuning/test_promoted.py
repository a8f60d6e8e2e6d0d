"""A tuned model goes into service, and back out; one that was refused is not there to promote."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from samserve.models.repository import discover
from samserve.tuning.errors import NotBetter
from samserve.tuning.evaluation import Demands
from samserve.tuning.pipeline import tune
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.engines.promotion.services import Services, command, served
from tests.tuning import toys

NAME = "sam_tiny"


@dataclass(frozen=True)
class _Served:
    """What a client gets: digest of the model, logits for an embedding id, and for the image."""

    digest: str
    clicked: np.ndarray
    embedded: np.ndarray


@pytest.mark.slow
async def test_tuned_model_is_promoted_and_rolled_back(tmp_path: Path) -> None:
    repository, refused = tmp_path / "repository", tmp_path / "refused"
    shutil.copytree(toys.SAM_TINY, repository)
    (base,) = discover(repository)
    new, digest = await asyncio.to_thread(_tuned, repository, tmp_path / "tuned")
    with pytest.raises(NotBetter):
        await asyncio.to_thread(_tuned, repository, refused, Demands(min_gain=1.0))

    image = sample_images.image()
    codes = []
    async with served("onnx", repository) as services:
        ((_, stub),) = services
        embedding = (await stub.Embed(pb.EmbedRequest(image=image))).embedding.id
        seen = [await _seen(services, embedding, image)]
        for arguments in (
            ("promote", NAME, str(refused / "models")),
            ("promote", NAME, str(new)),
            ("rollback", NAME),
        ):
            codes.append(await command(services, repository, *arguments))
            seen.append(await _seen(services, embedding, image))
    async with served("onnx", new) as services:
        ((_, stub),) = services
        expected = await _logits(stub, pb.PredictRequest(image=image))

    before, after_refusal, promoted, rolled_back = seen
    assert codes == [1, 0, 0]
    assert [each.digest for each in seen] == [base.info.digest] * 2 + [digest, base.info.digest]
    assert digest != base.info.digest
    for each in (before, after_refusal, rolled_back):
        assert np.array_equal(each.clicked, before.clicked)
    assert np.array_equal(promoted.clicked, expected)
    assert np.array_equal(promoted.embedded, expected)
    assert not np.allclose(promoted.clicked, before.clicked, atol=0.1)


def _tuned(repository: Path, folder: Path, demands: Demands = toys.ANY) -> tuple[Path, str]:
    """Tune the model of a repository for two steps; return the new repository and the digest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (base,) = discover(repository)
        toy = toys.Toy(None, base)
        options = toy.options(folder, steps=2, max_objects=1, demands=demands)
        tune(base, toys.parts(folder / "data"), options)
    finally:
        torch.set_num_threads(before)
    (new,) = discover(folder / "models")
    return folder / "models", new.info.digest


async def _seen(services: Services, embedding: str, image: pb.Image) -> _Served:
    ((_, stub),) = services
    (model,) = (await stub.ListModels(pb.ListModelsRequest())).models
    return _Served(
        model.digest,
        await _logits(stub, pb.PredictRequest(embedding_id=embedding)),
        await _logits(stub, pb.PredictRequest(image=image)),
    )


async def _logits(stub, request: pb.PredictRequest) -> np.ndarray:  # type: ignore[no-untyped-def]
    request.prompts.append(sample_images.point_prompt())
    request.include_low_res_logits = True
    (mask, *_) = (await stub.Predict(request)).results[0].masks
    return np.frombuffer(mask.low_res_logits, dtype=np.float32)
