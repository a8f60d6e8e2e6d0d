"""An exported pair, served by a real tritonserver."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from samserve.v1 import samserve_pb2 as pb
from tritonclient.grpc import model_config_pb2

from harness.triton.server import TritonServer
from tests import engine_choice, sample_images
from tests.conftest import serving, settings_with
from tests.export.conftest import Pair, View, session, small_only
from tests.export.test_served import mask_of
from tests.triton import queries

COUNTERS = ("nv_inference_request_success", "nv_inference_exec_count")


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


def _batch_four(config: Path) -> None:
    """Let the server wait for four requests, which it then runs at once."""
    parsed = text_format.Parse(config.read_text(), model_config_pb2.ModelConfig())
    parsed.max_batch_size = 4
    parsed.ClearField("dynamic_batching")
    parsed.dynamic_batching.preferred_batch_size.append(4)
    parsed.dynamic_batching.max_queue_delay_microseconds = 5_000_000
    config.write_text(text_format.MessageToString(parsed))


@pytest.mark.slow
@small_only
def test_requests_with_different_thresholds_share_a_run(pair: Pair, tmp_path: Path) -> None:
    models = tmp_path / "models"
    shutil.copytree(pair.repository, models)
    (decoder,) = models.glob("*_decoder")
    _batch_four(decoder / "config.pbtxt")
    graph = session((decoder / "1" / "model.onnx").read_bytes())
    feeds = [_points(graph, seed) for seed in range(4)]
    every = graph.run(["low_res_logits", "predicted_iou"], feeds[0])
    middle = float(np.median(every[1].max(2)))
    thresholds = (-np.inf, middle, np.inf, middle)
    for each, threshold in zip(feeds, thresholds, strict=True):
        each["iou_threshold"][:] = threshold
    expected = [graph.run(["low_res_logits"], each)[0] for each in feeds]
    server = TritonServer(models, log=tmp_path / "log", start_timeout_s=300)
    server.start()

    try:
        before = [queries.metric(server, name, decoder.name) for name in COUNTERS]
        with ThreadPoolExecutor(4) as threads:
            outputs = list(
                threads.map(
                    lambda each: queries.infer(server, decoder.name, each, ["low_res_logits"]),
                    feeds,
                )
            )
        queries.wait_for_metric(server, COUNTERS[0], decoder.name, before[0] + 4)
        runs = queries.metric(server, COUNTERS[1], decoder.name) - before[1]
    finally:
        server.kill()

    assert runs == 1
    skipped = [(each == 0).all((2, 3, 4)) for each in expected]
    assert [each.mean() for each in skipped[::2]] == [0, 1]
    assert all(0 < each.mean() < 1 for each in skipped[1::2])
    for output, wanted, zeros in zip(outputs, expected, skipped, strict=True):
        logits = output["low_res_logits"]
        np.testing.assert_array_equal((logits == 0).all((2, 3, 4)), zeros)
        np.testing.assert_allclose(logits, wanted, rtol=1e-3, atol=1e-3)


def _points(graph: onnxruntime.InferenceSession, seed: int) -> dict[str, np.ndarray]:
    """Return inputs of a decoder: eight prompts of two points on one embedding of noise."""
    generator = np.random.default_rng(0)
    shapes = {each.name: each.shape[1:] for each in graph.get_inputs()}
    points = np.random.default_rng(seed).uniform(0, 100, (1, 8, 2, 2))
    return {
        "image_embedding": generator.normal(size=(1, *shapes["image_embedding"])).astype("f2"),
        "point_coords": points.astype("f4"),
        "point_labels": np.ones((1, 8, 2), "f4"),
        "mask_input": np.zeros((1, 0, *shapes["mask_input"][1:]), "f4"),
        "iou_threshold": np.full((1, *shapes["iou_threshold"]), -np.inf, "f4"),
    }
