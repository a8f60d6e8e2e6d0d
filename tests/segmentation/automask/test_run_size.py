"""AutoMask's runs of the decoder get as many prompts as fit into a time."""

from __future__ import annotations

import pytest
from samserve.segmentation.automask.run_size import RunSize


def after(seconds_per_prompt: float, *, runs: int = 20, maximum: int = 64) -> int:
    size = RunSize(maximum, target_s=0.05)
    for _ in range(runs):
        prompts = size.prompts("model")
        size.record("model", prompts, prompts * seconds_per_prompt)
    return size.prompts("model")


@pytest.mark.parametrize(
    ("seconds_per_prompt", "prompts"), [(0.001, 32), (0.012, 4), (0.02, 2), (0.04, 1), (9.0, 1)]
)
def test_a_run_takes_at_most_the_target_unless_one_prompt_takes_longer(
    seconds_per_prompt: float, prompts: int
) -> None:
    assert after(seconds_per_prompt) == prompts


def test_runs_have_at_most_the_maximum() -> None:
    assert after(1e-6) == 64
    assert after(1e-6, maximum=24) == 24
    assert after(0.0) == 64


def test_the_first_run_is_small() -> None:
    assert RunSize(64, 0.05).prompts("model") == 4
    assert RunSize(2, 0.05).prompts("model") == 2


def test_each_model_has_its_own_size() -> None:
    size = RunSize(64, 0.05)
    size.record("slow", 4, 0.2)
    size.record("fast", 4, 0.004)

    assert (size.prompts("slow"), size.prompts("fast")) == (1, 32)


def test_runs_with_a_fixed_cost_grow() -> None:
    size = RunSize(64, 0.05)
    for _ in range(50):
        prompts = size.prompts("model")
        size.record("model", prompts, 0.01 + prompts * 0.001)

    # As many take 26 ms, twice as many 42 ms; a size is doubled if the mean allows it.
    assert size.prompts("model") == 16


def test_size_follows_a_machine_that_becomes_slower() -> None:
    size = RunSize(64, 0.05)
    size.record("model", 32, 0.032)
    for _ in range(20):
        size.record("model", 32, 0.32)

    assert size.prompts("model") == 4
