"""Scenes and prompts: scenes are deterministic, and prompts match their masks."""

from __future__ import annotations

import numpy as np
import pytest

from training.prompts import Sampler, prompts_for, sample_prompts, sample_targets
from training.scenes import HELD_OUT, TRAINING, SceneSettings, generate_scene
from training.schedule import Shape

SIDE = 192
BOXES = ("exact box", "box")


@pytest.mark.parametrize("settings", [TRAINING, HELD_OUT])
def test_seed_determines_the_scene(settings: SceneSettings) -> None:
    first, second = (generate_scene(7, SIDE, settings) for _ in range(2))
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.levels, second.levels)
    assert not np.array_equal(first.image, generate_scene(8, SIDE, settings).image)


def test_padding_is_black_and_has_no_ids() -> None:
    scenes = [generate_scene(seed, SIDE) for seed in range(12)]
    cropped = [scene for scene in scenes if scene.size != (SIDE, SIDE)]
    assert cropped
    for scene in cropped:
        height, width = scene.size
        assert not scene.image[height:].any()
        assert not scene.image[:, width:].any()
        assert not scene.levels[:, height:].any()
        assert not scene.levels[:, :, width:].any()


def test_finer_levels_lie_inside_coarser_ones() -> None:
    for seed in range(8):
        levels = generate_scene(seed, SIDE).levels
        for finer in (1, 2):
            for identity in np.unique(levels[finer][levels[finer] > 0]):
                assert len(np.unique(levels[finer - 1][levels[finer] == identity])) == 1


def test_foreground_points_lie_on_the_target_at_full_resolution() -> None:
    scene = generate_scene(3, SIDE)
    sampler = Sampler(scene, np.random.default_rng(0))
    targets = sample_targets(scene, 6, np.random.default_rng(0))
    prompts = prompts_for(sampler, targets, ["point"] * len(targets))
    for (level, identity), (x, y) in zip(targets, prompts.coords[:, 0], strict=True):
        assert scene.levels[level, int(y), int(x)] == identity


def test_box_has_exactly_one_valid_level() -> None:
    scene = generate_scene(5, SIDE)
    prompts = sample_prompts(scene, 40, Shape(1, 40, 512).kinds, np.random.default_rng(1))
    assert prompts.boxed.any()
    assert not prompts.boxed.all()
    assert (prompts.valid[prompts.boxed].sum(1) == 1).all()
    assert prompts.valid[np.arange(40), prompts.target].all()


def test_exact_box_encloses_the_visible_pixels_and_a_hand_drawn_box_nearly() -> None:
    sampler = Sampler(generate_scene(5, SIDE), np.random.default_rng(1))
    targets = sample_targets(sampler.scene, 6, np.random.default_rng(2)) * 4
    exact, by_hand = (prompts_for(sampler, targets, [kind] * len(targets)) for kind in BOXES)
    for target, (start, end) in zip(targets, exact.coords[:, :2], strict=True):
        rows, columns = np.nonzero(sampler.mask(*target))
        assert start.tolist() == [columns.min(), rows.min()]
        assert end.tolist() == [columns.max() + 1, rows.max() + 1]
    sides = (exact.coords[:, 1] - exact.coords[:, 0])[:, None]
    errors = np.abs(by_hand.coords[:, :2] - exact.coords[:, :2]) / sides
    assert 0.01 < errors.max() <= 0.1201
    assert (exact.labels == by_hand.labels).all()
