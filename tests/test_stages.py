"""The clock of a call: the stages that threads and waits are charged to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from samserve.stages import OTHER, StageClock

from tests.support.clock import Clock


def test_stages_of_a_thread_are_charged_to_the_call() -> None:
    now = Clock()
    clock = StageClock(now)
    with clock.running():
        now.now += 1
        with clock.in_thread("decode_image") as thread_clock:
            now.now += 2
            with thread_clock.running(), thread_clock.stage("resize"):
                now.now += 4
            now.now += 8

    assert clock.seconds == {"decode_image": 10, "resize": 4, OTHER: 1}


def test_work_of_a_thread_after_its_caller_has_left_is_not_charged() -> None:
    now = Clock()
    clock = StageClock(now)
    with clock.running():
        with clock.in_thread("decode_image") as thread_clock:
            now.now += 1
        with thread_clock.running(), thread_clock.stage("resize"):
            now.now += 2

    assert clock.seconds == {"decode_image": 1, OTHER: 2}


async def test_entry_is_charged_and_the_block_is_not() -> None:
    now = Clock()
    clock = StageClock(now)

    @asynccontextmanager
    async def lease() -> AsyncIterator[str]:
        now.now += 1
        yield "embedding"

    with clock.running():
        async with clock.entering("cache_put", lease()) as value:
            now.now += 2

    assert value == "embedding"
    assert clock.seconds == {"cache_put": 1, OTHER: 2}
