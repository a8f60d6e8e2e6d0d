"""The contract of `Engine`, run over every engine; all of them draw what `FakeEngine` draws."""

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
from samserve.context import Priority, RequestContext
from samserve.engines.base import Engine, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.errors import DeadlineExceeded, EngineFailure, WeightsChanged
from samserve.settings import load
from samserve.stores.local.store import MemoryStore
from samserve.telemetry.metrics import Metrics
from samserve.types import Transport

from tests import chosen
from tests.engines.triton.opening import SIDE, STARTUP_S, encoded, holds, picture, reserved
from tests.support.waiting import until
from tests.triton import servers

NAME = MODEL.name
Pair = tuple[Engine, MemoryStore]


@asynccontextmanager
async def opened(kind: str, **triton: Any) -> AsyncIterator[Pair]:
    """An engine of that kind, and a store in the memory that it allocates."""
    if kind.startswith("triton"):
        servers.drawing()
    sections = chosen.drawing(kind)
    sections["triton"] = {"startup_s": STARTUP_S, **sections.get("triton", {}), **triton}
    engine = await open_engine(load(sections), Metrics(CollectorRegistry()))
    store = MemoryStore(32 << 20, ttl_s=60, allocate=engine.allocate)
    try:
        yield engine, store
    finally:
        await store.aclose()
        await engine.aclose()


@pytest.fixture(params=chosen.ENGINES)
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


async def test_an_embedding_is_written_into_its_slot(pair: Pair) -> None:
    engine, store = pair
    image = picture(3, height=480)
    slot = await reserved(engine, store)
    slot.tensors["image_embedding"][...] = -1
    await engine.encode(NAME, image, slot, RequestContext())

    assert holds(slot, image)
    assert not slot.late_writers


# The fake engine has no weights, and draws on the embeddings of the others.
@pytest.mark.parametrize("pair", chosen.ENGINES[1:], indirect=True)
async def test_runs_for_other_weights_end_in_an_error_of_their_own(
    pair: Pair,
) -> None:
    engine, store = pair
    slot = await reserved(engine, store)
    slot = replace(slot, facts=replace(slot.facts, encoder_digest="0" * 64))
    with pytest.raises(WeightsChanged):
        await engine.encode(NAME, picture(), slot, RequestContext())
    with pytest.raises(WeightsChanged):
        await engine.decode(NAME, slot.as_embedding(), prompts([1, -1], 1), RequestContext())

    assert not slot.late_writers
    assert await engine.ready()


SHAPES = [
    ("click", [1, -1], 1, 0),
    ("16 clicks", [1, -1], 16, 0),
    ("boxes", [2, 3], 3, 0),
    ("several points", [1, 1, 0, -1], 2, 0),
    ("masks alone", [-1], 2, 2),
    ("everything", [0, 2, 3], 2, 2),
]


async def test_prompts_are_decoded_as_the_fake_engine_draws_them(
    pair: Pair,
) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
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


async def test_answers_at_once_do_not_mix(pair: Pair) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
    batches = [prompts([1, -1], 1 + seed % 2, seed=seed) for seed in range(16)]
    embedding = slot.as_embedding()
    outputs = await asyncio.gather(
        *(engine.decode(NAME, embedding, batch, RequestContext()) for batch in batches)
    )
    fake = FakeEngine()
    for batch, output in zip(batches, outputs, strict=True):
        expected = await fake.decode(NAME, embedding, batch, RequestContext())
        assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)


async def test_pictures_at_once_do_not_mix(pair: Pair) -> None:
    engine, store = pair
    images = [picture(seed) for seed in range(6)]
    slots = await asyncio.gather(
        *(encoded(engine, store, str(seed), image) for seed, image in enumerate(images))
    )

    assert all(map(holds, slots, images))


async def test_an_output_stays_as_it_is_while_others_are_decoded(
    pair: Pair,
) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
    kept = await engine.decode(NAME, slot.as_embedding(), prompts([1, -1], 2), RequestContext())
    part, before = kept.low_res_logits[1, 2], kept.low_res_logits.copy()
    del kept
    for seed in range(1, 6):
        other = prompts([1, -1], 2, seed=seed)
        await engine.decode(NAME, slot.as_embedding(), other, RequestContext())

    assert np.array_equal(part, before[1, 2])


@pytest.mark.parametrize("pair", ["triton", "triton-message"], indirect=True)
async def test_a_call_without_time_left_is_not_sent(pair: Pair) -> None:
    engine, store = pair
    slot = await reserved(engine, store)
    with pytest.raises(DeadlineExceeded):
        await engine.encode(NAME, picture(), slot, RequestContext(deadline=0.0))


async def test_a_cancelled_encode_leaves_a_slot_that_can_be_given_back(
    pair: Pair,
) -> None:
    engine, store = pair
    for _ in range(5):
        slot = await reserved(engine, store)
        task = asyncio.create_task(engine.encode(NAME, picture(), slot, RequestContext()))
        await asyncio.sleep(0.005)
        task.cancel()
        await asyncio.wait([task])
        await store.discard(slot)
    await until(lambda: not store.stats().quarantined_bytes)

    assert store.stats().bytes == 0
    slot = await encoded(engine, store)


# The fake engine cannot fail.
@pytest.mark.parametrize("pair", ["onnx", "triton", "triton-message"], indirect=True)
async def test_a_failing_run_is_an_engine_failure(pair: Pair) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
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
async def test_an_engine_is_ready_and_tells_its_models_and_transport(
    kind: str, transport: Transport
) -> None:
    async with opened(kind) as (engine, _):
        assert await engine.ready()
        assert engine.transport is transport
        assert list(engine.models) == [NAME]
        assert engine.models[NAME].embedding == MODEL.embedding


async def test_without_scratch_memory_tensors_go_in_messages() -> None:
    async with opened("triton", scratch_bytes=0) as (engine, store):
        slot = await encoded(engine, store, "x", picture(5))
        batch = prompts([1, -1], 3)
        output = await engine.decode(NAME, slot.as_embedding(), batch, RequestContext())
        expected = await FakeEngine().decode(NAME, slot.as_embedding(), batch, RequestContext())

        assert slot.tensors["image_embedding"][:3].any()
        assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)
