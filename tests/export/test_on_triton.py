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
from tests import chosen, pictures
from tests.conftest import serving, settings_with
from tests.export.conftest import Pair, View, small_only
from tests.export.test_served import mask_of


@contextmanager
def served_by(engine: str, repository: Path) -> Iterator[chosen.Sections]:
    """Settings that serve a repository; Triton runs as long as the block."""
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
                "store": {"capacity_bytes": 64 << 20},
            }
        finally:
            server.kill()


async def assert_served(engine: str, pair: Pair, view: View) -> pb.Model:
    """A click through the whole service is answered as by the original; gives the model."""
    height, width = view.picture.shape[:2]
    x, y = 0.4 * width, 0.6 * height
    predictor = view.predictor
    predictor.features = torch.from_numpy(view.original)
    expected, iou, _ = predictor.predict(np.array([[x, y]]), np.array([1]), multimask_output=True)
    request = pb.PredictRequest(
        image=pb.Image(encoded=view.file),
        prompts=[pictures.click(x, y)],
        multimask=pb.MULTIMASK_ALL,
    )

    with served_by(engine, pair.repository) as sections:
        async with serving(settings_with(**sections)) as (_, stub):
            (listed,) = (await stub.ListModels(pb.ListModelsRequest())).models
            answer = await stub.Predict(request)

    masks = [mask_of(mask) for mask in answer.results[0].masks]
    assert np.mean(np.stack(masks) == expected) >= 0.999  # the embedding is rounded in between
    found = [mask.predicted_iou for mask in answer.results[0].masks]
    np.testing.assert_allclose(found, iou, atol=1e-3)
    return listed


@pytest.mark.slow
@small_only
async def test_a_click_is_answered_as_by_the_original(pair: Pair) -> None:
    listed = await assert_served("triton", pair, pair.views[0])

    assert listed.card.variant == "custom"
