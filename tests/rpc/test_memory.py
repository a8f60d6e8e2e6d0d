"""Resident memory stays under the sum of model, cache and work in flight, stated here."""

from __future__ import annotations

import asyncio

import psutil
import pytest
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.gateway import GatewayServer
from tests import sample_images
from tests.conftest import stub_of

MIB = 1 << 20
CACHE = 16 * MIB
HEIGHT, WIDTH = 600, 800
CALLERS = 8
ROUNDS = 2
PROMPTS_PER_BATCH = 16

# The memory of work in flight, by its parts (docs/operations.md has the same formula).
REQUESTS = CALLERS * 3 * HEIGHT * WIDTH
IMAGES = 2 * 2 * 3 * HEIGHT * WIDTH  # decoded and converted, in as many threads as there are cores
RUNS = 2 * PROMPTS_PER_BATCH * 4 * 256 * 256 * 4  # one being decoded, one being filtered
ACTIVATIONS = 160 * MIB  # of the decoder with 16 prompts, which ONNX Runtime keeps for the next run
DEFERRED = CALLERS * 128 * 256 * 256 * 4  # candidates of AutoMask before suppression
ALLOCATOR = 64 * MIB  # freed, but not yet returned to the system
IN_FLIGHT = REQUESTS + IMAGES + RUNS + ACTIVATIONS + DEFERRED + ALLOCATOR


SETTINGS = {
    "cache.local.capacity_bytes": CACHE,
    "engine.kind": "onnx",
    "engine.max_prompts_per_batch": PROMPTS_PER_BATCH,
}


async def load(stub: SegmentationServiceStub, seed: int) -> None:
    """Make calls that need memory: new images, many prompts, a search, large responses."""
    image = pb.Image(encoded=sample_images.png(HEIGHT, WIDTH, seed))
    prompts = [
        sample_images.point_prompt(10 + 20 * index, 300) for index in range(2 * PROMPTS_PER_BATCH)
    ]
    await stub.Predict(pb.PredictRequest(image=image, prompts=prompts, multimask=pb.MULTIMASK_ALL))
    options = pb.AutoMaskOptions(points_per_side=4, pred_iou_thresh=0.0, stability_score_thresh=0.0)
    async for _ in stub.AutoMask(pb.AutoMaskRequest(image=image, options=options)):
        pass


@pytest.mark.slow
async def test_resident_memory_stays_within_its_bound() -> None:
    with GatewayServer(SETTINGS) as gateway:
        server = psutil.Process(gateway.pid)
        base = server.memory_info().rss
        async with stub_of(gateway.target) as stub:
            for first in range(0, ROUNDS * CALLERS, CALLERS):
                await asyncio.gather(*(load(stub, first + caller) for caller in range(CALLERS)))
        grown = server.memory_info().rss - base

    # Twice as many embeddings were computed as the cache holds.
    assert ROUNDS * CALLERS * 2 * MIB == 2 * CACHE
    assert grown <= CACHE + IN_FLIGHT, f"{grown / MIB:.0f} MiB"
