"""Interactive calls have priority over bulk calls, also in Triton's queue."""

from __future__ import annotations

import asyncio
from functools import partial

from samserve.context import Priority, RequestContext
from samserve.engines.base import PromptBatch
from samserve.engines.fake import MODEL

from tests.engines.triton.services import encoded, opened, point_prompts
from tests.support.waiting import until
from tests.triton import queries
from tests.triton.servers import Holding

BULK_CALLS = 12
DECODER = f"{MODEL.name}_decoder"


async def test_interactive_decode_overtakes_bulk_decodes_in_the_queue_of_triton(
    holding: Holding,
) -> None:
    triton = holding.server
    async with opened(triton.grpc_address) as (engine, cache):
        slot = await encoded(engine, cache)
        embedding = slot.as_embedding()
        done: list[str] = []

        async def decode(name: str, batch: PromptBatch, priority: Priority) -> None:
            context = RequestContext(priority=priority)
            await engine.decode(MODEL.name, embedding, batch, context)
            done.append(name)

        # Both instances are busy; consecutive requests differ in shape, so that none are batched.
        busy = [
            asyncio.create_task(
                decode("busy", point_prompts(count, held=True), Priority.INTERACTIVE)
            )
            for count in (4, 5)
        ]
        await holding.hold.begun(2)
        bulk = [
            asyncio.create_task(decode("bulk", point_prompts(1 + 2 * (number % 2)), Priority.BULK))
            for number in range(BULK_CALLS)
        ]
        await until(partial(queries.is_queued, triton, DECODER, BULK_CALLS))
        call = asyncio.create_task(decode("interactive", point_prompts(2), Priority.INTERACTIVE))
        await until(partial(queries.is_queued, triton, DECODER, BULK_CALLS + 1))
        assert done == []
        # One instance only, so that results arrive in the order in which they were computed.
        holding.hold.release(1)
        await call
        earlier = done[: done.index("interactive")]
        holding.hold.release()
        await asyncio.gather(*busy, *bulk)

    assert earlier.count("bulk") <= BULK_CALLS // 4
