"""An exported pair, served by a real tritonserver."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from samserve.v1 import samserve_pb2 as pb

from harness.triton.server import TritonServer
from tests import engine_choice, sample_images
from tests.conftest import serving, settings_with
from tests.export.conftest import Pair, View, small_only
from tests.export.test_served import mask_of


@contextmanager
def served_by(engine: str, repository: Path) -> Iterator[engine_choice.Sections]:
    """Yield settings that serve a repository; Triton runs until the block ends."""
    if engine == "onnx":
        yield {"engine": {"kind": "onnx", "model_repository": str(repository)}}
        return
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "triton.log"
        server = TritonServer(model_repository=repository, log=log, start_timeout_s=300)
        try:
            server.start()
            yield {
                "engine": {"kind": "triton"},
                "triton": {
                    "url": server.grpc_address,
                    "shared_memory": "required",
                },
                "cache": {"local": {"capacity_bytes": 64 << 20}},
            }
        finally:
            server.kill()


async def assert_served(engine: str, pair: Pair, view: View) -> pb.Model:
    """Check that Predict on the service returns the masks of the original; return the model."""
    height, width = view.photo.shape[:2]
    x, y = 0.4 * width, 0.6 * height
    predictor = view.predictor
    predictor.features = torch.from_numpy(view.original)
    expected, iou, _ = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
    request = pb.PredictRequest(
        image=pb.Image(encoded=view.file),
        prompts=[sample_images.point_prompt(x, y)],
        multimask=pb.MULTIMASK_ALL,
    )

    with served_by(engine, pair.repository) as sections:
        async with serving(settings_with(**sections)) as (_, stub):
            (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
            response = await stub.Predict(request)

    masks = [mask_of(mask) for mask in response.results[0].masks]
    assert np.mean(np.stack(masks) == expected) >= 0.999  # the service rounds the embedding
    found = [mask.predicted_iou for mask in response.results[0].masks]
    np.testing.assert_allclose(found, iou, atol=1e-3)
    return listed


@pytest.mark.slow
@small_only
async def test_predict_returns_the_masks_of_the_original(pair: Pair) -> None:
    listed = await assert_served("triton", pair, pair.views[0])

    assert listed.card.variant == "custom"
