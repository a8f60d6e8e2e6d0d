"""The contract of `Engine`, tested on every engine; all of them draw what `FakeEngine` draws."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from samserve.app import open_engine
from samserve.cache.local.cache import LocalCache
from samserve.context import Priority, RequestContext
from samserve.engines.base import Engine, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.errors import DeadlineExceeded, EngineFailure, WeightsChanged
from samserve.settings import load
from samserve.telemetry.metrics import Metrics
from samserve.types import Transport

from tests import engine_choice
from tests.engines.triton.services import SIDE, STARTUP_S, encoded, matches, random_image, reserved
from tests.support.waiting import until
from tests.triton import servers

NAME = MODEL.name
Pair = tuple[Engine, LocalCache]


@asynccontextmanager
async def opened(kind: str, **triton: Any) -> AsyncIterator[Pair]:
    """Open an engine of a kind, and a cache in the memory that it allocates."""
    if kind.startswith("triton"):
        servers.drawing()
    sections = engine_choice.drawing_settings(kind)
    sections["triton"] = {"startup_timeout_s": STARTUP_S, **sections.get("triton", {}), **triton}
    engine = await open_engine(load(sections), Metrics(CollectorRegistry()))
    cache = LocalCache(32 << 20, ttl_s=60, allocate=engine.allocate)
    try:
        yield engine, cache
    finally:
        await cache.aclose()
        await engine.aclose()


@pytest.fixture(params=engine_choice.ENGINES)
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[Pair]:
    async with opened(request.param) as both:
        yield both


def prompts(labels: list[int], count: int, masks: int = 0, seed: int = 0) -> PromptBatch:
    numbers = np.random.default_rng(seed)
    coords = np.sort(numbers.random((count, len(labels), 2)), axis=1) * SIDE
    return PromptBatch(
        coords.astype(np.float32),
        np.tile(np.array(labels, dtype=np.float32), (count, 1)),
        numbers.normal(size=(masks, 256, 256)).astype(np.float32),
    )


async def test_encode_writes_the_embedding_into_its_slot(pair: Pair) -> None:
    engine, cache = pair
    image = random_image(3, height=480)
    slot = await reserved(engine, cache)
    slot.tensors["image_embedding"][...] = -1
    await engine.encode(NAME, image, slot, RequestContext())

    assert matches(slot, image)
    assert not slot.pending_writes


# The fake engine has no weights and accepts the embeddings of the other engines.
@pytest.mark.parametrize("pair", engine_choice.ENGINES[1:], indirect=True)
async def test_runs_with_other_weights_raise_weights_changed(
    pair: Pair,
) -> None:
    engine, cache = pair
    slot = await reserved(engine, cache)
    slot = replace(slot, facts=replace(slot.facts, encoder_digest="0" * 64))
    with pytest.raises(WeightsChanged):
        await engine.encode(NAME, random_image(), slot, RequestContext())
    with pytest.raises(WeightsChanged):
        await engine.decode(NAME, slot.as_embedding(), prompts([1, -1], 1), RequestContext())

    assert not slot.pending_writes
    assert await engine.ready()


SHAPES = [
    ("point", [1, -1], 1, 0),
    ("16 prompts", [1, -1], 16, 0),
    ("boxes", [2, 3], 3, 0),
    ("several points", [1, 1, 0, -1], 2, 0),
    ("masks only", [-1], 2, 2),
    ("everything", [0, 2, 3], 2, 2),
]


async def test_decode_matches_the_fake_engine(
    pair: Pair,
) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    embedding = slot.as_embedding()
    for shape, labels, count, masks in SHAPES:
        batch = prompts(labels, count, masks)
        expected = await FakeEngine().decode(NAME, embedding, batch, RequestContext())
        for priority in Priority:
            context = RequestContext(priority=priority)
            output = await engine.decode(NAME, embedding, batch, context)

            assert output.low_res_logits.shape == (count, 4, 256, 256), shape
            assert output.low_res_logits.dtype == output.predicted_iou.dtype == np.float32
            assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3), shape
            assert np.allclose(output.predicted_iou, expected.predicted_iou), shape


async def test_concurrent_decodes_do_not_mix(pair: Pair) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    batches = [prompts([1, -1], 1 + seed % 2, seed=seed) for seed in range(16)]
    embedding = slot.as_embedding()
    outputs = await asyncio.gather(
        *(engine.decode(NAME, embedding, batch, RequestContext()) for batch in batches)
    )
    fake = FakeEngine()
    for batch, output in zip(batches, outputs, strict=True):
        expected = await fake.decode(NAME, embedding, batch, RequestContext())
        assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)


async def test_concurrent_encodes_do_not_mix(pair: Pair) -> None:
    engine, cache = pair
    images = [random_image(seed) for seed in range(6)]
    slots = await asyncio.gather(
        *(encoded(engine, cache, str(seed), image) for seed, image in enumerate(images))
    )

    assert all(map(matches, slots, images))


async def test_output_does_not_change_during_later_decodes(
    pair: Pair,
) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    kept = await engine.decode(NAME, slot.as_embedding(), prompts([1, -1], 2), RequestContext())
    part, before = kept.low_res_logits[1, 2], kept.low_res_logits.copy()
    del kept
    for seed in range(1, 6):
        other = prompts([1, -1], 2, seed=seed)
        await engine.decode(NAME, slot.as_embedding(), other, RequestContext())

    assert np.array_equal(part, before[1, 2])


@pytest.mark.parametrize("pair", ["triton", "triton-message"], indirect=True)
async def test_call_after_its_deadline_is_not_sent(pair: Pair) -> None:
    engine, cache = pair
    slot = await reserved(engine, cache)
    with pytest.raises(DeadlineExceeded):
        await engine.encode(NAME, random_image(), slot, RequestContext(deadline=0.0))


async def test_slot_of_a_cancelled_encode_can_be_discarded(
    pair: Pair,
) -> None:
    engine, cache = pair
    for _ in range(5):
        slot = await reserved(engine, cache)
        task = asyncio.create_task(engine.encode(NAME, random_image(), slot, RequestContext()))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        await cache.discard(slot)
    await until(lambda: not cache.stats().quarantined_bytes)

    assert cache.stats().bytes == 0
    slot = await encoded(engine, cache)


# The fake engine does not fail.
@pytest.mark.parametrize("pair", ["onnx", "triton", "triton-message"], indirect=True)
async def test_failing_run_raises_engine_failure(pair: Pair) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    good = prompts([1, -1], 1)
    wrong = PromptBatch(np.zeros((1, 2, 3), dtype=np.float32), good.point_labels, good.mask_input)

    with pytest.raises(EngineFailure):
        await engine.decode(NAME, slot.as_embedding(), wrong, RequestContext())
    await engine.decode(NAME, slot.as_embedding(), good, RequestContext())


@pytest.mark.parametrize(
    ("kind", "transport"),
    [
        ("fake", Transport.IN_PROCESS),
        ("onnx", Transport.IN_PROCESS),
        ("triton", Transport.SHARED_MEMORY),
        ("triton-message", Transport.MESSAGE),
    ],
)
async def test_engine_reports_readiness_models_and_transport(
    kind: str, transport: Transport
) -> None:
    async with opened(kind) as (engine, _):
        assert await engine.ready()
        assert engine.transport is transport
        assert list(engine.models) == [NAME]
        assert engine.models[NAME].embedding == MODEL.embedding


async def test_without_a_shared_memory_pool_tensors_are_sent_in_messages() -> None:
    async with opened("triton", shared_memory_pool_bytes=0) as (engine, cache):
        slot = await encoded(engine, cache, "x", random_image(5))
        batch = prompts([1, -1], 3)
        output = await engine.decode(NAME, slot.as_embedding(), batch, RequestContext())
        expected = await FakeEngine().decode(NAME, slot.as_embedding(), batch, RequestContext())

        assert slot.tensors["image_embedding"][:3].any()
        assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)
