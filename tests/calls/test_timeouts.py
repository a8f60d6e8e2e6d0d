"""Timeouts of calls on one timer of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from samserve.calls.timeouts import Timeout, Timeouts
from samserve.errors import DeadlineExceeded, SamserveError

from tests.support.clock import advance_loop


class Expiring(Timeout):
    """A timeout that raises an error with its name."""

    def __init__(self, timeouts: Timeouts, seconds: float, name: str = "") -> None:
        super().__init__(timeouts, seconds)
        self._name = name

    def error(self) -> SamserveError:
        return DeadlineExceeded(self._name)


@contextmanager
def counted_timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Yield the times of all timers that are set in the block."""
    loop, times = asyncio.get_running_loop(), []
    call_at = loop.call_at
    with monkeypatch.context() as patch:
        patch.setattr(
            loop, "call_at", lambda when, *args: (times.append(when), call_at(when, *args))[1]
        )
        yield times


async def wait(timeouts: Timeouts, seconds: float, name: str, ended: list[str]) -> None:
    """Wait until the timeout, and note its name in *ended*."""
    try:
        with Expiring(timeouts, seconds, name):
            await asyncio.Event().wait()
    except DeadlineExceeded as error:
        ended.append(error.message)


async def test_timeouts_expire_in_their_order_whichever_was_begun_first() -> None:
    timeouts, ended = Timeouts(), list[str]()
    waiting = [
        asyncio.create_task(wait(timeouts, seconds, f"{seconds} s", ended))
        for seconds in (30, 10, 40, 20)
    ]
    await asyncio.sleep(0)

    await advance_loop(9)
    assert ended == []
    await advance_loop(2)
    assert ended == ["10 s"]
    await advance_loop(100)
    assert ended == ["10 s", "20 s", "30 s", "40 s"]
    await asyncio.gather(*waiting)


async def test_block_that_ends_in_time_is_not_cancelled() -> None:
    timeouts = Timeouts()

    with Expiring(timeouts, 10):
        pass
    await advance_loop(100)

    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_cancellation_from_outside_is_not_an_expiry() -> None:
    ended: list[str] = []
    waiting = asyncio.create_task(wait(Timeouts(), 10, "late", ended))
    await asyncio.sleep(0)
    waiting.cancel()

    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == []


async def test_inner_timeout_does_not_end_the_outer_block() -> None:
    timeouts, ended = Timeouts(), list[str]()
    started = asyncio.Event()

    async def nested() -> str:
        with Expiring(timeouts, 20, "outer"):
            started.set()
            await wait(timeouts, 10, "inner", ended)
            return "continued"

    task = asyncio.create_task(nested())
    await started.wait()
    await advance_loop(11)

    assert await task == "continued"
    assert ended == ["inner"]


async def test_timeouts_that_end_in_time_share_one_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts = Timeouts()

    with counted_timers(monkeypatch) as times:
        for _ in range(100):
            with Expiring(timeouts, 10), Expiring(timeouts, 20):
                pass

    assert len(times) == 1
