from __future__ import annotations

import asyncio

import pytest
from samserve.system.background import periodic, supervised
from structlog.testing import capture_logs

from tests.support.waiting import until


class Steps:
    """Counts its calls; the calls with the numbers *failing* raise an exception."""

    def __init__(self, *failing: int) -> None:
        self.started = self.cancelled = 0
        self._failing = failing

    async def step(self) -> None:
        self.started += 1
        if self.started in self._failing:
            raise LookupError("unexpected")

    async def run_forever(self) -> None:
        """Run until cancelled."""
        await self.step()
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled += 1


async def test_a_task_is_restarted_after_an_exception_and_cancelled_with_the_block() -> None:
    steps = Steps(1, 2)
    with capture_logs() as lines:
        async with supervised(steps.run_forever, "it failed", restart_s=0.001):
            await until(lambda: steps.started == 3)

    assert [(line["event"], line["log_level"]) for line in lines] == [("it failed", "error")] * 2
    assert (steps.started, steps.cancelled) == (3, 1)


async def test_a_task_that_has_returned_is_not_restarted() -> None:
    steps = Steps()
    async with supervised(steps.step, "it failed", restart_s=0.001):
        await until(lambda: steps.started)
        before = asyncio.all_tasks()

    assert (steps.started, len(before)) == (1, 1)


async def test_steps_are_repeated_after_exceptions_until_the_block_ends() -> None:
    steps = Steps(2)
    with capture_logs() as lines:
        async with periodic(steps.step, 0.001, "it failed"):
            assert steps.started == 0
            await until(lambda: steps.started >= 4)

    assert len(asyncio.all_tasks()) == 1
    assert [line["event"] for line in lines] == ["it failed"]


async def test_an_exception_of_the_block_ends_the_task_and_is_raised() -> None:
    steps = Steps()

    async def fail() -> None:
        async with supervised(steps.run_forever, "it failed", restart_s=0.001):
            await until(lambda: steps.started)
            raise LookupError("of the block")

    with pytest.raises(LookupError, match="of the block"):
        await fail()

    assert steps.cancelled == 1
