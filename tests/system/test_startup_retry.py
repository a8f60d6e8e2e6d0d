from __future__ import annotations

import pytest
from samserve.errors import EngineFailure, EngineUnavailable, SamserveError
from samserve.system import startup_retry
from samserve.system.startup_retry import StartupRetry
from structlog.testing import capture_logs

from tests.support.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Time that passes only between attempts."""
    clock = Clock()

    async def sleep(seconds: float) -> None:
        clock.now += seconds

    monkeypatch.setattr(startup_retry.time, "monotonic", clock)
    monkeypatch.setattr(startup_retry.asyncio, "sleep", sleep)
    return clock


class Failing:
    """A step that fails so many times."""

    def __init__(self, times: int, error: SamserveError) -> None:
        self.left = times
        self.error = error

    async def __call__(self) -> str:
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return "done"


async def test_what_fails_is_tried_again_until_the_time_is_over(clock: Clock) -> None:
    step = Failing(10**6, EngineUnavailable("away"))
    began = clock.now

    with pytest.raises(EngineUnavailable, match=r"away; given up after 25 s, a\.setting gives"):
        await StartupRetry(25.0, "a.setting").until_done(step, "waiting")

    assert clock.now - began == pytest.approx(25.0, abs=0.5)


async def test_what_comes_late_is_waited_for_and_said_now_and_then(clock: Clock) -> None:
    with capture_logs() as lines:
        done = await StartupRetry(60.0, "a.setting").until_done(
            Failing(150, EngineUnavailable("away")), "waiting"
        )

    assert done == "done"
    assert [(line["event"], line["gives_up_in_s"]) for line in lines] == [
        ("waiting", 60),
        ("waiting", 50),
        ("waiting", 40),
    ]


async def test_two_waits_share_the_time(clock: Clock) -> None:
    shared = StartupRetry(30.0, "a.setting")
    began = clock.now
    await shared.until_done(Failing(100, EngineUnavailable("away")), "waiting")

    with pytest.raises(EngineUnavailable):
        await shared.until_done(Failing(10**6, EngineUnavailable("away")), "waiting")

    assert clock.now - began == pytest.approx(30.0, abs=0.5)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (StartupRetry(0.0), EngineUnavailable("away")),
        (StartupRetry(60.0, "a.setting"), EngineFailure("broken")),
    ],
    ids=["without time", "not worth it"],
)
async def test_other_failures_are_raised_as_they_are_at_once(
    given: StartupRetry, error: SamserveError
) -> None:
    step = Failing(2, error)

    with pytest.raises(type(error)) as caught:
        await given.until_done(step, "waiting", (EngineUnavailable,))

    assert caught.value is error
    assert step.left == 1
