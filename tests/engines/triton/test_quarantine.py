"""Requests without a response that still write while their memory is needed for other requests.

Triton holds some runs until the test releases them: their calls are cancelled during the run, and
the other instance of the model serves the other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.engines.triton.engine import TritonEngine
from samserve.errors import EngineFailure, EngineUnavailable, WeightsChanged

from tests.engines.drawing import mark_held
from tests.engines.triton.services import (
    encoded,
    matches,
    opened,
    point_prompts,
    random_image,
    reserved,
    runs_in_flight,
    wait_for_checks,
)
from tests.support.waiting import until
from tests.triton.servers import Holding

NAME = MODEL.name
SLOTS = 4
Pair = tuple[TritonEngine, LocalCache]


@pytest.fixture
async def pair(holding: Holding) -> AsyncIterator[Pair]:
    async with opened(
        holding.server.grpc_address,
        capacity_bytes=SLOTS * MODEL.embedding_bytes,
        health_interval_s=0.05,
    ) as both:
        yield both


def held_image() -> EncoderInput:
    image = random_image(7)
    mark_held(image.pixels)
    return image


async def cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def is_in_flight(engine: TritonEngine, network: str, count: int) -> bool:
    return runs_in_flight(engine._metrics, network) == count


async def test_slot_is_not_reused_while_a_cancelled_encode_may_write(
    pair: Pair, holding: Holding
) -> None:
    engine, cache = pair
    cancelled = await reserved(engine, cache, "cancelled")
    task = asyncio.create_task(engine.encode(NAME, held_image(), cancelled, RequestContext()))
    await holding.hold.begun()
    await cancel([task])
    await cache.discard(cancelled)
    written = cancelled.tensors["image_embedding"]
    written[...] = -5

    # All other slots are needed now.
    images, filled = [random_image(100 + seed) for seed in range(SLOTS - 1)], []
    for number, image in enumerate(images):
        slot = await reserved(engine, cache, f"new {number}")
        assert slot.index != cancelled.index
        await engine.encode(NAME, image, slot, RequestContext())
        filled.append(slot)
    assert all(map(matches, filled, images))
    await wait_for_checks(engine)
    assert cache.stats().quarantined_bytes == MODEL.embedding_bytes
    assert (written == -5).all()

    # The cancelled run ends by writing into the slot, which was not reused.
    holding.hold.release()
    await until(lambda: cache.stats().quarantined_bytes == 0)
    assert (written[3:] == 0).all()
    assert all(map(matches, filled, images))
    assert (await reserved(engine, cache, "again")).index == cancelled.index


async def test_logits_do_not_change_when_a_cancelled_decode_writes(
    pair: Pair, holding: Holding
) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    embedding = slot.as_embedding()
    task = asyncio.create_task(
        engine.decode(NAME, embedding, point_prompts(2, seed=7, held=True), RequestContext())
    )
    await holding.hold.begun()
    await cancel([task])
    batches = [point_prompts(2, seed=10 + seed) for seed in range(4)]
    held = [await engine.decode(NAME, embedding, batch, RequestContext()) for batch in batches]
    before = [output.low_res_logits.copy() for output in held]
    await wait_for_checks(engine)
    assert engine._regions.retired_bytes > 0

    holding.hold.release()
    await until(lambda: engine._regions.retired_bytes == 0)
    fake = FakeEngine()
    for batch, output, copy in zip(batches, held, before, strict=True):
        expected = await fake.decode(NAME, embedding, batch, RequestContext())
        assert np.array_equal(output.low_res_logits, copy)
        assert np.allclose(copy, expected.low_res_logits, atol=1e-3)


async def test_rejected_request_retires_no_memory(pair: Pair) -> None:
    engine, cache = pair
    slot = await encoded(engine, cache)
    good = point_prompts(2)
    wrong = PromptBatch(good.point_coords[..., :1], good.point_labels, good.mask_input)
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await engine.decode(NAME, slot.as_embedding(), wrong, RequestContext())
        assert engine._regions.retired_bytes == 0
    # These prompts are for a decoder that was replaced by one with masks of another size.
    smaller = replace(good, mask_input=np.zeros((0, 128, 128), dtype=np.float32))
    with pytest.raises(WeightsChanged):
        await engine.decode(NAME, slot.as_embedding(), smaller, RequestContext())
    before = engine._pool._bytes
    await engine.decode(NAME, slot.as_embedding(), good, RequestContext())

    assert engine._pool._bytes == before


async def test_cancelled_requests_that_a_paused_triton_reads_later_change_no_result(
    holding: Holding, pair: Pair
) -> None:
    triton = holding.server
    engine, cache = pair
    slot = await encoded(engine, cache)
    embedding = slot.as_embedding()
    fake = FakeEngine()
    for _ in range(2):
        triton.pause()
        cancelled = [
            asyncio.create_task(
                engine.decode(NAME, embedding, point_prompts(1, seed=s), RequestContext())
            )
            for s in range(4)
        ]
        await until(partial(is_in_flight, engine, "decoder", 4))
        await cancel(cancelled)
        batches = [point_prompts(1, seed=50 + s) for s in range(4)]
        calls = [
            asyncio.create_task(engine.decode(NAME, embedding, batch, RequestContext()))
            for batch in batches
        ]
        await until(partial(is_in_flight, engine, "decoder", 4))
        await asyncio.to_thread(triton.resume)
        outputs = await asyncio.gather(*calls)
        # The cancelled requests have ended as well.
        await until(lambda: engine._regions.retired_bytes == 0)
        for batch, output in zip(batches, outputs, strict=True):
            expected = await fake.decode(NAME, embedding, batch, RequestContext())
            assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)
        del outputs, output


async def test_quarantine_ends_when_triton_has_restarted(holding: Holding, pair: Pair) -> None:
    triton = holding.server
    engine, cache = pair
    slot = await reserved(engine, cache, "x")
    # The first request creates the segments.
    await engine.encode(NAME, random_image(), slot, RequestContext())
    triton.pause()
    task = asyncio.create_task(engine.encode(NAME, random_image(), slot, RequestContext()))
    await until(partial(is_in_flight, engine, "encoder", 1))
    await cancel([task])
    await cache.discard(slot)
    assert cache.stats().quarantined_bytes == MODEL.embedding_bytes
    triton.kill()
    await until(lambda: not engine._monitor.healthy)
    # It may be dead or only disconnected.
    assert cache.stats().quarantined_bytes == MODEL.embedding_bytes
    with pytest.raises(EngineUnavailable):
        await engine.encode(
            NAME, random_image(), await reserved(engine, cache, "y"), RequestContext()
        )
    triton.start()
    await until(lambda: cache.stats().quarantined_bytes == 0)
    await until(lambda: engine._monitor.healthy)
    image = random_image(3)
    slot = await encoded(engine, cache, "z", image)
    assert matches(slot, image)
