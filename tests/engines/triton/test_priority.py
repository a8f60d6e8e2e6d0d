"""People who click go before searches, also in Triton's queue."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from samserve.context import Priority, RequestContext
from samserve.engines.base import PromptBatch
from samserve.engines.fake import MODEL

from harness.triton.server import TritonServer
from tests.engines.drawing import DAWDLING_CLICK, ONE_SECOND, write_drawing_pair
from tests.engines.triton.opening import clicks, opened, picture, reserved

SEARCHES = 12


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("priority")
    write_drawing_pair(folder / "models", steps=ONE_SECOND)
    with TritonServer(folder / "models", log=folder / "log") as server:
        yield server


def dawdling(count: int) -> PromptBatch:
    batch = clicks(count)
    batch.point_coords[0, 0, 0] = DAWDLING_CLICK
    return batch


async def test_a_click_overtakes_searches_that_wait_in_triton(triton: TritonServer) -> None:
    async with opened(triton.grpc_address) as (engine, store):
        slot = await reserved(engine, store, "x")
        await engine.encode(MODEL.name, picture(), slot, RequestContext())
        embedding = slot.as_embedding()
        done: list[str] = []

        async def decode(name: str, batch: PromptBatch, priority: Priority) -> None:
            context = RequestContext(priority=priority)
            await engine.decode(MODEL.name, embedding, batch, context)
            done.append(name)

        # Both instances are at work; neighbours differ in shape, so that none are batched.
        busy = [
            asyncio.create_task(decode("busy", dawdling(count), Priority.INTERACTIVE))
            for count in (4, 5)
        ]
        await asyncio.sleep(0.3)
        searches = [
            asyncio.create_task(decode("search", clicks(1 + 2 * (number % 2)), Priority.BULK))
            for number in range(SEARCHES)
        ]
        await asyncio.sleep(0.2)
        click = asyncio.create_task(decode("click", clicks(2), Priority.INTERACTIVE))
        assert done == []
        await asyncio.gather(*busy, *searches, click)

    before_the_click = done[: done.index("click")]
    assert before_the_click.count("search") <= SEARCHES // 4
