"""Runs that were lost and still write while their memory is wanted for others.

The pair that draws has pictures and clicks that take it a second longer: calls about those are
given up in the middle, and the other instance of the model goes on with what others want.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import numpy as np
import pytest
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.fake import MODEL, FakeEngine
from samserve.engines.triton.engine import TritonEngine
from samserve.errors import EngineFailure, EngineUnavailable
from samserve.stores.base import Slot
from samserve.stores.memory import MemoryStore

from harness.triton.server import TritonServer
from tests.engines.drawing import DAWDLING_CLICK, ONE_SECOND, write_drawing_pair
from tests.engines.triton.opening import clicks, eventually, opened, picture, reserved

NAME = MODEL.name
SLOTS = 4
Pair = tuple[TritonEngine, MemoryStore]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The pair that draws and dawdles, with two instances of the encoder, too."""
    folder = tmp_path_factory.mktemp("quarantine")
    repository = folder / "models"
    write_drawing_pair(repository, steps=ONE_SECOND)
    config = repository / f"{NAME}_encoder" / "config.pbtxt"
    text = config.read_text()
    changed = text.replace("instance_group [ { count: 1 } ]", "instance_group [ { count: 2 } ]")
    assert changed != text
    config.write_text(changed)
    with TritonServer(repository, log=folder / "log") as server:
        yield server


@pytest.fixture
async def pair(triton: TritonServer) -> AsyncIterator[Pair]:
    async with opened(
        triton.grpc_address, capacity_bytes=SLOTS * MODEL.embedding_bytes, health_interval_s=0.05
    ) as both:
        yield both


def dawdling_picture() -> EncoderInput:
    image = picture(7)
    image.pixels[0, 0] = 255
    return image


def dawdling_click() -> PromptBatch:
    batch = clicks(2, seed=7)
    batch.point_coords[0, 0, 0] = DAWDLING_CLICK
    return batch


async def give_up(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


def cells(image: EncoderInput) -> np.ndarray:
    """What the encoder that draws writes into the first three channels."""
    return image.pixels.reshape(64, 16, 64, 16, 3).mean(axis=(1, 3)).transpose(2, 0, 1)


def holds(slot: Slot, image: EncoderInput) -> bool:
    written = slot.tensors["image_embedding"][:3].astype(np.float32)
    return np.allclose(written, cells(image), atol=0.1)


async def test_a_slot_is_not_used_again_while_a_lost_encode_may_write(pair: Pair) -> None:
    engine, store = pair
    lost = await reserved(engine, store, "lost")
    task = asyncio.create_task(engine.encode(NAME, dawdling_picture(), lost, RequestContext()))
    await asyncio.sleep(0.3)
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
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    assert (written == -5).all()

    # The lost run ends by writing into the slot that nobody else was given.
    await eventually(lambda: store.stats().quarantined_bytes == 0)
    assert (written[3:] == 0).all()
    assert all(map(holds, filled, images))
    assert (await reserved(engine, store, "again")).index == lost.index


async def test_logits_do_not_change_when_a_lost_decode_writes(pair: Pair) -> None:
    engine, store = pair
    slot = await reserved(engine, store, "x")
    await engine.encode(NAME, picture(), slot, RequestContext())
    embedding = slot.as_embedding()
    task = asyncio.create_task(engine.decode(NAME, embedding, dawdling_click(), RequestContext()))
    await asyncio.sleep(0.3)
    await give_up([task])
    batches = [clicks(2, seed=10 + seed) for seed in range(4)]
    held = [await engine.decode(NAME, embedding, batch, RequestContext()) for batch in batches]
    before = [output.low_res_logits.copy() for output in held]
    assert engine._regions.retired_bytes > 0

    await eventually(lambda: engine._regions.retired_bytes == 0)
    fake = FakeEngine()
    for batch, output, copy in zip(batches, held, before, strict=True):
        expected = await fake.decode(NAME, embedding, batch, RequestContext())
        assert np.array_equal(output.low_res_logits, copy)
        assert np.allclose(copy, expected.low_res_logits, atol=1e-3)


async def test_a_request_that_triton_refuses_holds_nothing(pair: Pair) -> None:
    engine, store = pair
    slot = await reserved(engine, store, "x")
    await engine.encode(NAME, picture(), slot, RequestContext())
    good = clicks(2)
    wrong = PromptBatch(good.point_coords[..., :1], good.point_labels, good.mask_input)
    for _ in range(3):
        with pytest.raises(EngineFailure):
            await engine.decode(NAME, slot.as_embedding(), wrong, RequestContext())
        assert engine._regions.retired_bytes == 0
    before = engine._scratch._bytes
    await engine.decode(NAME, slot.as_embedding(), good, RequestContext())

    assert engine._scratch._bytes == before


async def test_a_request_that_a_stopped_triton_has_yet_to_read_harms_nobody(
    triton: TritonServer, pair: Pair
) -> None:
    engine, store = pair
    slot = await reserved(engine, store, "x")
    await engine.encode(NAME, picture(), slot, RequestContext())
    embedding = slot.as_embedding()
    fake = FakeEngine()
    for _ in range(5):
        triton.pause()
        lost = [
            asyncio.create_task(engine.decode(NAME, embedding, clicks(1, seed=s), RequestContext()))
            for s in range(4)
        ]
        await asyncio.sleep(0.05)
        await give_up(lost)
        wanted = [clicks(1, seed=50 + s) for s in range(4)]
        calls = [
            asyncio.create_task(engine.decode(NAME, embedding, batch, RequestContext()))
            for batch in wanted
        ]
        await asyncio.sleep(0.05)
        triton.resume()
        outputs = await asyncio.gather(*calls)
        await asyncio.sleep(0.1)
        for batch, output in zip(wanted, outputs, strict=True):
            expected = await fake.decode(NAME, embedding, batch, RequestContext())
            assert np.allclose(output.low_res_logits, expected.low_res_logits, atol=1e-3)
        del outputs, output
    await eventually(lambda: engine._regions.retired_bytes == 0)


async def test_what_a_lost_request_holds_ends_with_the_triton_that_held_it(
    triton: TritonServer, pair: Pair
) -> None:
    engine, store = pair
    slot = await reserved(engine, store, "x")
    # The first one makes the segments.
    await engine.encode(NAME, picture(), slot, RequestContext())
    triton.pause()
    task = asyncio.create_task(engine.encode(NAME, picture(), slot, RequestContext()))
    await asyncio.sleep(0.1)
    await give_up([task])
    await store.discard(slot)
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    triton.kill()
    await asyncio.sleep(0.5)
    # Nobody can tell yet whether it is dead or cut off.
    assert store.stats().quarantined_bytes == MODEL.embedding_bytes
    with pytest.raises(EngineUnavailable):
        await engine.encode(NAME, picture(), await reserved(engine, store, "y"), RequestContext())
    triton.start()
    await eventually(lambda: store.stats().quarantined_bytes == 0)
    await eventually(lambda: engine._link.healthy)
    image = picture(3)
    slot = await reserved(engine, store, "z")
    await engine.encode(NAME, image, slot, RequestContext())
    assert holds(slot, image)
