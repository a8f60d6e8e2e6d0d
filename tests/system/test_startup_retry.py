from __future__ import annotations

import pytest
from samserve.errors import EngineFailure, EngineUnavailable, SamserveError
from samserve.system import startup_retry
from samserve.system.startup_retry import StartupRetry
from structlog.testing import capture_logs

from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that advances only between attempts."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(startup_retry.time, "monotonic", clock)
    monkeypatch.setattr(startup_retry.asyncio, "sleep", sleep)
    return clock


class Failing:
    """A step that fails a number of times."""

    def __init__(self, times: int, error: SamserveError) -> None:
        self.remaining = times
        self.error = error

    async def __call__(self) -> str:
        self.remaining -= 1
        if self.remaining >= 0:
            raise self.error
        return "done"


async def test_a_failing_step_is_retried_until_the_time_is_over(clock: Clock) -> None:
    step = Failing(10**6, EngineUnavailable("unavailable"))
    began = clock.now

    with pytest.raises(EngineUnavailable, match=r"given up after 25 s, increase a\.setting for"):
        await StartupRetry(25.0, "a.setting").run(step, "waiting")

    assert clock.now - began == pytest.approx(25.0, abs=0.5)


async def test_a_late_success_is_returned_and_the_wait_is_logged_periodically(clock: Clock) -> None:
    with capture_logs() as lines:
        done = await StartupRetry(60.0, "a.setting").run(
            Failing(150, EngineUnavailable("unavailable")), "waiting"
        )

    assert done == "done"
    assert [(line["event"], line["gives_up_in_s"]) for line in lines] == [
        ("waiting", 60),
        ("waiting", 50),
        ("waiting", 40),
    ]


async def test_consecutive_steps_share_the_time(clock: Clock) -> None:
    shared = StartupRetry(30.0, "a.setting")
    began = clock.now
    await shared.run(Failing(100, EngineUnavailable("unavailable")), "waiting")

    with pytest.raises(EngineUnavailable):
        await shared.run(Failing(10**6, EngineUnavailable("unavailable")), "waiting")

    assert clock.now - began == pytest.approx(30.0, abs=0.5)


@pytest.mark.parametrize(
    ("retry", "error"),
    [
        (StartupRetry(0.0), EngineUnavailable("unavailable")),
        (StartupRetry(60.0, "a.setting"), EngineFailure("broken")),
    ],
    ids=["without time", "another error"],
)
async def test_other_errors_are_raised_at_once(retry: StartupRetry, error: SamserveError) -> None:
    step = Failing(2, error)

    with pytest.raises(type(error)) as caught:
        await retry.run(step, "waiting", (EngineUnavailable,))

    assert caught.value is error
    assert step.remaining == 1
