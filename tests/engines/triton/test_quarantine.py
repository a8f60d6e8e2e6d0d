"""Runs that were lost and still write while their memory is wanted for others.

Triton holds some runs until the test lets them go on: calls about those are given up in the middle,
and the other instance of the model goes on with what others want.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.engines.triton.engine import TritonEngine
from samserve.errors import EngineFailure, EngineUnavailable, WeightsChanged
from samserve.stores.local.store import MemoryStore

from tests.engines.drawing import held_pixels
from tests.engines.triton.opening import (
    clicks,
    encoded,
    holds,
    looked_again,
    opened,
    picture,
    reserved,
    under_way,
)
from tests.support.waiting import until
from tests.triton.servers import Holding

NAME = MODEL.name
SLOTS = 4
Pair = tuple[TritonEngine, MemoryStore]


@pytest.fixture
async def pair(holding: Holding) -> AsyncIterator[Pair]:
    async with opened(
        holding.server.grpc_address,
        capacity_bytes=SLOTS * MODEL.embedding_bytes,
        health_interval_s=0.05,
    ) as both:
        yield both


def held_picture() -> EncoderInput:
    image = picture(7)
    held_pixels(image.pixels)
    return image


async def give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def is_under_way(engine: TritonEngine, network: str, count: int) -> bool:
    return under_way(engine._metrics, network) == count


async def test_a_slot_is_not_used_again_while_a_lost_encode_may_write(
    pair: Pair, holding: Holding
) -> None:
    engine, store = pair
    lost = await reserved(engine, store, "lost")
    task = asyncio.create_task(engine.encode(NAME, held_picture(), lost, RequestContext()))
    await holding.hold.begun()
    await give_up([task])
    await store.discard(lost)
    written = lost.tensors["image_embedding"]
    written[...] = -5

    # Everything else in the store is wanted now.
    images, filled = [picture(100 + seed) for seed in range(SLOTS - 1)], []
    for number, image in enumerate(images):
        slot = await reserved(engine, store, f"new {number}")
        assert slot.index != lost.index
        await engine.encode(NAME, image, slot, RequestContext())
        filled.append(slot)
    assert all(map(holds, filled, images))
    await looked_again(engine)
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    assert (written == -5).all()

    # The lost run ends by writing into the slot that nobody else was given.
    holding.hold.release()
    await until(lambda: store.stats().quarantined_bytes == 0)
    assert (written[3:] == 0).all()
    assert all(map(holds, filled, images))
    assert (await reserved(engine, store, "again")).index == lost.index


async def test_logits_do_not_change_when_a_lost_decode_writes(pair: Pair, holding: Holding) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
    embedding = slot.as_embedding()
    task = asyncio.create_task(
        engine.decode(NAME, embedding, clicks(2, seed=7, held=True), RequestContext())
    )
    await holding.hold.begun()
    await give_up([task])
    batches = [clicks(2, seed=10 + seed) for seed in range(4)]
    held = [await engine.decode(NAME, embedding, batch, RequestContext()) for batch in batches]
    before = [output.low_res_logits.copy() for output in held]
    await looked_again(engine)
    assert engine._regions.retired_bytes > 0

    holding.hold.release()
    await until(lambda: engine._regions.retired_bytes == 0)
    fake = FakeEngine()
    for batch, output, copy in zip(batches, held, before, strict=True):
        expected = await fake.decode(NAME, embedding, batch, RequestContext())
        assert np.array_equal(output.low_res_logits, copy)
        assert np.allclose(copy, expected.low_res_logits, atol=1e-3)


async def test_a_request_that_triton_refuses_holds_nothing(pair: Pair) -> None:
    engine, store = pair
    slot = await encoded(engine, store)
    good = clicks(2)
    wrong = PromptBatch(good.point_coords[..., :1], good.point_labels, good.mask_input)
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await engine.decode(NAME, slot.as_embedding(), wrong, RequestContext())
        assert engine._regions.retired_bytes == 0
    # These are for a decoder that was replaced by one with masks of another size.
    smaller = replace(good, mask_input=np.zeros((0, 128, 128), dtype=np.float32))
    with pytest.raises(WeightsChanged):
        await engine.decode(NAME, slot.as_embedding(), smaller, RequestContext())
    before = engine._pool._bytes
    await engine.decode(NAME, slot.as_embedding(), good, RequestContext())

    assert engine._pool._bytes == before


async def test_a_request_that_a_stopped_triton_has_yet_to_read_harms_nobody(
    holding: Holding, pair: Pair
) -> None:
    triton = holding.server
    engine, store = pair
    slot = await encoded(engine, store)
    embedding = slot.as_embedding()
    fake = FakeEngine()
    for _ in range(2):
        triton.pause()
        lost = [
            asyncio.create_task(engine.decode(NAME, embedding, clicks(1, seed=s), RequestContext()))
            for s in range(4)
        ]
        await until(partial(is_under_way, engine, "decoder", 4))
        await give_up(lost)
        wanted = [clicks(1, seed=50 + s) for s in range(4)]
        calls = [
            asyncio.create_task(engine.decode(NAME, embedding, batch, RequestContext()))
            for batch in wanted
        ]
        await until(partial(is_under_way, engine, "decoder", 4))
        await asyncio.to_thread(triton.resume)
        outputs = await asyncio.gather(*calls)
        # What was lost has ended, too.
        await until(lambda: engine._regions.retired_bytes == 0)
        for batch, output in zip(wanted, outputs, strict=True):
            expected = await fake.decode(NAME, embedding, batch, RequestContext())
            assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)
        del outputs, output


async def test_what_a_lost_request_holds_ends_with_the_triton_that_held_it(
    holding: Holding, pair: Pair
) -> None:
    triton = holding.server
    engine, store = pair
    slot = await reserved(engine, store, "x")
    # The first one makes the segments.
    await engine.encode(NAME, picture(), slot, RequestContext())
    triton.pause()
    task = asyncio.create_task(engine.encode(NAME, picture(), slot, RequestContext()))
    await until(partial(is_under_way, engine, "encoder", 1))
    await give_up([task])
    await store.discard(slot)
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    triton.kill()
    await until(lambda: not engine._monitor.healthy)
    # Nobody can tell yet whether it is dead or cut off.
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    with pytest.raises(EngineUnavailable):
        await engine.encode(NAME, picture(), await reserved(engine, store, "y"), RequestContext())
    triton.start()
    await until(lambda: store.stats().quarantined_bytes == 0)
    await until(lambda: engine._monitor.healthy)
    image = picture(3)
    slot = await encoded(engine, store, "z", image)
    assert holds(slot, image)
