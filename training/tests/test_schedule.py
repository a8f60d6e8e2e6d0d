"""A longer run continues a shorter one, and the seed determines every step."""

from __future__ import annotations

import pytest

from training.schedule import EARLY, EARLY_STEPS, FINAL, STATIONARY, WARMUP_STEPS, Schedule


def test_run_does_not_depend_on_its_length_before_the_cooldown() -> None:
    short, long = Schedule(1000, 3), Schedule(5000, 3)
    steps = range(short.cooldown_start)
    assert [short.shape(step) for step in steps] == [long.shape(step) for step in steps]
    assert [short.rate(step) for step in steps] == [long.rate(step) for step in steps]
    assert short.cooldown_start < long.cooldown_start


def test_shapes_of_each_part_of_the_run_have_about_their_probabilities() -> None:
    schedule = Schedule(9000, 0)
    starts = (0, EARLY_STEPS, schedule.cooldown_start, schedule.steps)
    for start, end, choices in zip(starts, starts[1:], (EARLY, STATIONARY, FINAL), strict=False):
        drawn = [schedule.shape(step) for step in range(start, end)]
        assert set(drawn) == {shape for _, shape in choices}
        for probability, shape in choices:
            assert drawn.count(shape) / len(drawn) == pytest.approx(probability, abs=0.05)


def test_short_run_has_a_cooldown() -> None:
    schedule = Schedule(200, 0)
    assert {schedule.shape(step) for step in range(170, 200)} <= {shape for _, shape in FINAL}


def test_another_seed_draws_other_shapes() -> None:
    one, other = ([Schedule(500, seed).shape(step) for step in range(100)] for seed in (0, 1))
    assert one != other


def test_rate_rises_stays_constant_and_falls_to_zero() -> None:
    schedule = Schedule(1000, 0)
    rates = [schedule.rate(step) for step in range(1000)]
    assert rates[0] == pytest.approx(1 / WARMUP_STEPS)
    assert set(rates[WARMUP_STEPS : schedule.cooldown_start]) == {1.0}
    assert rates[schedule.cooldown_start :] == sorted(rates[schedule.cooldown_start :])[::-1]
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_run_of_a_few_steps_is_valid(steps: int) -> None:
    schedule = Schedule(steps, 0)
    assert all(0 < schedule.rate(step) <= 1 for step in range(steps))
