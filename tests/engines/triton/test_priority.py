"""People who click go before searches, also in Triton's queue."""

from __future__ import annotations

import asyncio
from functools import partial

from samserve.context import Priority, RequestContext
from samserve.engines.base import PromptBatch
from samserve.engines.fake import MODEL

from tests.engines.triton.opening import clicks, encoded, opened
from tests.support.waiting import until
from tests.triton import asking
from tests.triton.servers import Holding

SEARCHES = 12
DECODER = f"{MODEL.name}_decoder"


async def test_a_click_overtakes_searches_that_wait_in_triton(holding: Holding) -> None:
    triton = holding.server
    async with opened(triton.grpc_address) as (engine, store):
        slot = await encoded(engine, store)
        embedding = slot.as_embedding()
        done: list[str] = []

        async def decode(name: str, batch: PromptBatch, priority: Priority) -> None:
            context = RequestContext(priority=priority)
            await engine.decode(MODEL.name, embedding, batch, context)
            done.append(name)

        # Both instances are at work; neighbours differ in shape, so that none are batched.
        busy = [
            asyncio.create_task(decode("busy", clicks(count, held=True), Priority.INTERACTIVE))
            for count in (4, 5)
        ]
        await holding.hold.begun(2)
        searches = [
            asyncio.create_task(decode("search", clicks(1 + 2 * (number % 2)), Priority.BULK))
            for number in range(SEARCHES)
        ]
        await until(partial(asking.is_queued, triton, DECODER, SEARCHES))
        click = asyncio.create_task(decode("click", clicks(2), Priority.INTERACTIVE))
        await until(partial(asking.is_queued, triton, DECODER, SEARCHES + 1))
        assert done == []
        # One instance only, so that answers come in the order in which they were computed.
        holding.hold.release(1)
        await click
        before_the_click = done[: done.index("click")]
        holding.hold.release()
        await asyncio.gather(*busy, *searches)

    assert before_the_click.count("search") <= SEARCHES // 4
