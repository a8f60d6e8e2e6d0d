"""Embeddings of several tensors in shared memory: three families in one tritonserver."""

from __future__ import annotations

from collections.abc import AsyncIterator

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, Engine
from samserve.engines.onnx import OnnxEngine
from samserve.engines.triton.engine import TritonEngine
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size

from tests import sample_images
from tests.engines.full_size import EMBEDDINGS
from tests.engines.triton.services import opened, point_prompts
from tests.metric_values import total
from tests.triton import servers

SIDE = 1024
Pair = tuple[Engine, LocalCache]


@pytest.fixture
async def local() -> AsyncIterator[Pair]:
    """The in-process engine."""
    engine = OnnxEngine(servers.full_size_repository(), 2, Metrics(CollectorRegistry()))
    yield engine, LocalCache(64 << 20, ttl_s=60)
    await engine.aclose()


async def encode(pair: Pair, model: str, seed: int) -> Slot:
    """Encode a random image of one colour."""
    engine, cache = pair
    info = engine.models[model]
    facts = EmbeddingFacts.of(Size(SIDE, SIDE), info)
    slot = await cache.reserve(EmbeddingKey("t", f"{model}{seed}"), facts, info.embedding)
    colour = sample_images.noise(1, 1, seed)
    pixels = np.ascontiguousarray(np.broadcast_to(colour, (SIDE, SIDE, 3)))
    valid = None if families.of(info).fills_frame else Size(SIDE, SIDE)
    await engine.encode(model, EncoderInput(pixels, valid), slot, RequestContext())
    return slot


async def decode(pair: Pair, slot: Slot, prompts: int) -> DecoderOutput:
    batch = point_prompts(prompts, seed=prompts, masks=prompts)
    name = slot.facts.model_name
    return await pair[0].decode(name, slot.as_embedding(), batch, RequestContext())


@pytest.mark.parametrize("memory", ["required", "off"])
async def test_every_family_returns_what_the_in_process_engine_does(
    memory: str, local: Pair
) -> None:
    address = servers.full_size().grpc_address
    async with opened(address, shared_memory=memory) as triton:
        engine: TritonEngine = triton[0]
        for seed, model in enumerate([*EMBEDDINGS] * 2):
            slots = [await encode(pair, model, seed) for pair in (triton, local)]
            for name, shape in EMBEDDINGS[model].items():
                ours, theirs = (slot.tensors[name] for slot in slots)
                assert ours.shape == shape
                assert ours.any()
                assert np.array_equal(ours, theirs)
                assert ours.ctypes.data % 64 == 0
                assert (engine._shared.locate(ours) is not None) == (memory == "required")
            for count in (1, 3):
                ours, theirs = [
                    await decode(pair, slot, count)
                    for pair, slot in zip((triton, local), slots, strict=True)
                ]
                assert np.array_equal(ours.low_res_logits, theirs.low_res_logits)
                assert np.array_equal(ours.predicted_iou, theirs.predicted_iou)
                scores = (ours.object_score_logits, theirs.object_score_logits)
                if model == "sam2":
                    assert scores[0].shape == (count,)
                    assert np.array_equal(*scores)
                else:
                    assert scores == (None, None)


async def test_slots_of_all_sizes_are_reused_and_stay_apart() -> None:
    """The cache holds exactly one embedding of each family."""
    capacity = 16 << 20
    async with opened(servers.full_size().grpc_address, capacity_bytes=capacity) as triton:
        cache = triton[1]
        for round_ in range(4):
            slots, written = [], []
            for number, model in enumerate(EMBEDDINGS):
                slots.append(await encode(triton, model, 10 * round_ + number))
                written.append({name: each.copy() for name, each in slots[-1].tensors.items()})
            assert cache.stats().bytes == capacity  # 2 + 6 + 8 MiB
            for slot, before in zip(slots, written, strict=True):
                output = await decode(triton, slot, 1)
                assert np.isfinite(output.low_res_logits).all()
                for name, tensor in slot.tensors.items():
                    assert np.array_equal(tensor, before[name])
                await cache.discard(slot)
        fallbacks = total(
            triton[0]._metrics.registry, "samserve_triton_shared_memory_fallbacks_total"
        )
        assert fallbacks == 0
