"""The measures of the report are computed correctly."""

from __future__ import annotations

import numpy as np
import pytest
from samserve.tuning.measures import mask_iou, widest_error

from training.photographs import coin_masks, score_coins
from training.scenes import NESTED
from training.scoring import (
    HELD_OUT_SEED,
    NESTED_SEED,
    held_out_scenes,
    matched,
)


def test_iou_of_logits_counts_pixels_above_zero() -> None:
    logits = np.array([[-1.0, 2.0], [3.0, 0.0]])
    goal = np.array([[0, 1], [1, 1]])
    assert mask_iou(logits, goal) == pytest.approx(2 / 3)
    assert mask_iou(np.zeros((2, 2)), np.zeros((2, 2))) == 0


def test_matching_is_one_to_one() -> None:
    assert matched(np.zeros((3, 3), bool)) == 0
    assert matched(np.eye(3, dtype=bool)[[0, 0, 1]]) == 2
    assert matched(np.ones((3, 3), bool)) == 3


def test_next_point_is_in_the_widest_error() -> None:
    goal = np.zeros((256, 256), bool)
    goal[40:80, 40:80] = True
    mask = goal.copy()
    mask[60:80, 40:80] = False
    mask[100:104, 100:104] = True
    (x, y), label = widest_error(mask, goal)
    assert label == 1
    assert goal[int(y / 4), int(x / 4)]
    assert not mask[int(y / 4), int(x / 4)]
    assert widest_error(goal, goal)[1] == -1


@pytest.mark.slow
def test_scenes_have_full_size_and_are_deterministic() -> None:
    first, second = (list(held_out_scenes(2, HELD_OUT_SEED, NESTED)) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one.image.shape == (1024, 1024, 3)
        assert np.array_equal(one.image, other.image)
    assert HELD_OUT_SEED % 2 == NESTED_SEED % 2 == 0


def test_coin_masks_have_a_perfect_score() -> None:
    coins = coin_masks()
    assert len(coins) == 24
    assert not np.sum(coins, 0).max() > 1
    score = score_coins(coins)
    assert (score.coins, score.found, score.unmatched) == (24, 24, 0)


def test_masks_that_match_no_coin_are_counted() -> None:
    coins = coin_masks()
    half = coins[0].copy()
    half[:, : int(np.flatnonzero(half.any(0)).mean())] = False
    everything = np.ones_like(half)
    score = score_coins([half, everything, coins[3], coins[3]])
    assert (score.found, score.unmatched) == (1, 2)
    assert score_coins([]).found == 0
