"""Triton and the in-process engine return the same results, also when requests are batched."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from functools import cache

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from samserve.app import default_repository
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.onnx import OnnxEngine
from samserve.memory.slot import Slot
from samserve.telemetry.metrics import Metrics
from samserve.types import Size

from harness.triton.server import TritonServer
from tests import photos
from tests.engines.triton.services import SIDE, encoded, opened, point_prompts
from tests.triton import queries, servers
from tests.triton.repositories import write_unbatched

THREADS = 2
MODEL = "sam_tiny"
Local = tuple[OnnxEngine, LocalCache]


@pytest.fixture(scope="module")
def unbatched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The default model without batching, with the thread count of the in-process engine."""
    folder = tmp_path_factory.mktemp("unbatched")
    for network in ("encoder", "decoder"):
        write_unbatched(folder / "models", f"{MODEL}_{network}", THREADS)
    with TritonServer(folder / "models", log=folder / "log") as server:
        yield server


@pytest.fixture
async def local() -> AsyncIterator[Local]:
    """The in-process engine."""
    engine = OnnxEngine(default_repository(), THREADS, Metrics(CollectorRegistry()))
    yield engine, LocalCache(64 << 20, ttl_s=60)
    await engine.aclose()


async def decoded(local: Local, slot: Slot, batch: PromptBatch) -> DecoderOutput:
    return await local[0].decode(MODEL, slot.as_embedding(), batch, RequestContext())


@cache
def photographs() -> list[EncoderInput]:
    """Return three photographs, cropped to the model frame."""
    inputs = []
    for data in photos.files():
        photo = photos.pixels(data)[:SIDE, :SIDE]
        frame = np.full((SIDE, SIDE, 3), 255, dtype=np.uint8)
        frame[: photo.shape[0], : photo.shape[1]] = photo
        inputs.append(EncoderInput(frame, Size(*photo.shape[:2])))
    return inputs


PROMPTS = [
    point_prompts(1),
    point_prompts(5, seed=1),
    point_prompts(1, seed=2, points=4),
    point_prompts(3, seed=3, masks=3),
    point_prompts(16, seed=4),
]


async def test_results_without_batching_are_bitwise_equal(
    unbatched: TritonServer, local: Local
) -> None:
    async with (
        opened(unbatched.grpc_address, shared_memory="required") as shared,
        opened(unbatched.grpc_address, shared_memory="off") as in_messages,
    ):
        for index, image in enumerate(photographs()[:2]):
            expected_slot = await encoded(*local, str(index), image)
            slots = []
            for engine, cache in (shared, in_messages):
                slot = await encoded(engine, cache, str(index), image)
                slots.append(slot)
                ours = slot.tensors["image_embedding"]
                assert ours.astype(np.float32).std() > 0.1
                assert np.array_equal(ours, expected_slot.tensors["image_embedding"])
            for batch in PROMPTS if index == 0 else PROMPTS[:1]:
                expected = await local[0].decode(
                    MODEL, expected_slot.as_embedding(), batch, RequestContext()
                )
                for (engine, _), slot in zip((shared, in_messages), slots, strict=True):
                    embedding = slot.as_embedding()
                    output = await engine.decode(MODEL, embedding, batch, RequestContext())
                    assert np.array_equal(output.low_res_logits, expected.low_res_logits)
                    assert np.array_equal(output.predicted_iou, expected.predicted_iou)


async def test_eight_clients_are_batched_and_each_gets_its_own_result(local: Local) -> None:
    server = servers.default()
    decoder = f"{MODEL}_decoder"
    async with opened(server.grpc_address) as (engine, cache):
        slots = []
        for seed in range(8):
            slot = await encoded(engine, cache, str(seed), _tinted(seed))
            slots.append(slot)
        batches = [point_prompts(1, seed=seed) for seed in range(8)]
        before = [queries.metric(server, name, decoder) for name in COUNTERS]
        # On a busy machine the requests may be sent one after the other.
        for rounds in range(1, 50):
            outputs = await asyncio.gather(
                *(
                    engine.decode(MODEL, slot.as_embedding(), batch, RequestContext())
                    for slot, batch in zip(slots, batches, strict=True)
                )
            )
            queries.wait_for_metric(server, COUNTERS[0], decoder, before[0] + rounds * 8)
            requests, executions = (
                queries.metric(server, name, decoder) - start
                for name, start in zip(COUNTERS, before, strict=True)
            )
            if executions < requests:
                break
        for slot, batch, output in zip(slots, batches, outputs, strict=True):
            assert_equivalent(output, await decoded(local, slot, batch))
        assert_distinct(outputs)

    assert requests == rounds * 8
    assert executions < requests


COUNTERS = ("nv_inference_request_success", "nv_inference_exec_count")


def _tinted(seed: int) -> EncoderInput:
    """Return a photograph, shifted differently for each seed."""
    image = photographs()[seed % 3]
    return EncoderInput(np.roll(image.pixels, 37 * seed, axis=(0, 1)), Size(SIDE, SIDE))


def assert_equivalent(output: DecoderOutput, expected: DecoderOutput) -> None:
    """Check for the same best token, and equal mask values in 99.99 % of the pixels."""
    assert np.allclose(output.predicted_iou, expected.predicted_iou, atol=1e-4)
    assert output.predicted_iou.argmax() == expected.predicted_iou.argmax()
    unequal = (output.low_res_logits > 0) != (expected.low_res_logits > 0)
    assert unequal.mean() <= 1e-4


def assert_distinct(outputs: list[DecoderOutput]) -> None:
    """Check that all results differ, so that a result returned to two callers would be noticed."""
    masks = [output.low_res_logits > 0 for output in outputs]
    for index, mask in enumerate(masks):
        assert 0.001 < mask.mean() < 0.999
        for other in masks[:index]:
            assert (mask != other).mean() > 0.01
