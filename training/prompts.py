"""Prompts for synthetic scenes: the points and boxes of a user who selects an object.

Points are (x, y) in pixels of the scene; pixel ``i`` has its centre at ``i + 0.5``. Masks are at a
quarter of the scene's side, the resolution of the decoder's low-res logits.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from samserve.tuning.prompts import BOX_START, FOREGROUND, KINDS, PADDING, sample_points

from training.scenes import OBJECT, Scene

Array = NDArray[Any]
MAX_POINTS = 4
MIN_AREA = 300
"""Minimum of visible pixels of a target in training."""
MIN_EVALUATED_AREA = 24**2
"""The same in evaluation: 1.5 cells of the embedding grid squared."""
Target = tuple[int, int]
"""Level and id."""


@dataclass
class PromptSet:
    """P prompts on one scene.

    ``coords`` float32 ``[P,4,2]``, ``labels`` float32 ``[P,4]``, ``masks`` uint8 ``[P,3,s,s]``
    (the object at the prompt, by level), ``valid`` bool ``[P,3]``, ``target`` int64 ``[P]``
    (the level of the target) and ``boxed`` bool ``[P]``.
    """

    coords: Array
    labels: Array
    masks: Array
    valid: Array
    target: Array
    boxed: Array


@dataclass
class Sampler:
    """A scene with the masks computed so far."""

    scene: Scene
    rng: np.random.Generator
    full: dict[tuple[int, int], Array] = field(default_factory=dict)
    small: dict[tuple[int, int], Array] = field(default_factory=dict)

    def mask(self, level: int, identity: int) -> Array:
        """Return the visible pixels of an id: bool ``[S,S]``."""
        key = (level, identity)
        if key not in self.full:
            self.full[key] = self.scene.levels[level] == identity
        return self.full[key]

    def low_res(self, level: int, identity: int) -> Array:
        """Return the same at a quarter of the side: uint8 ``[s,s]``."""
        key = (level, identity)
        if key not in self.small:
            coverage = self.mask(level, identity).astype(np.uint8) * 255
            side = coverage.shape[0] // 4
            small = cv2.resize(coverage, (side, side), interpolation=cv2.INTER_AREA)
            self.small[key] = (small > 127).astype(np.uint8)
        return self.small[key]


def sample_prompts(
    scene: Scene, count: int, probabilities: tuple[float, ...], rng: np.random.Generator
) -> PromptSet:
    """Draw ``count`` prompts for objects of all sizes and levels; kinds by ``probabilities``."""
    sampler = Sampler(scene, rng)
    targets = _targets(scene)
    picked = [_pick(sampler, targets) for _ in range(count)]
    kinds = rng.choice(KINDS, count, p=probabilities)
    return prompts_for(sampler, picked, [str(kind) for kind in kinds])


def sample_targets(scene: Scene, count: int, rng: np.random.Generator) -> list[Target]:
    """Draw distinct (level, id) pairs for evaluation."""
    rows = _targets(scene, MIN_EVALUATED_AREA)
    count = min(count, len(rows))
    chosen = rng.choice(len(rows), count, replace=False, p=rows[:, 2] / rows[:, 2].sum())
    return [(int(level), int(identity)) for level, identity in rows[chosen, :2]]


def prompts_for(sampler: Sampler, targets: list[Target], kinds: list[str]) -> PromptSet:
    """Return one prompt of the given kind for each target."""
    count, side = len(targets), sampler.scene.image.shape[0] // 4
    prompts = PromptSet(
        np.zeros((count, MAX_POINTS, 2), np.float32),
        np.full((count, MAX_POINTS), PADDING, np.float32),
        np.zeros((count, 3, side, side), np.uint8),
        np.zeros((count, 3), bool),
        np.zeros(count, np.int64),
        np.zeros(count, bool),
    )
    for index, (target, kind) in enumerate(zip(targets, kinds, strict=True)):
        _fill(prompts, index, sampler, target, kind)
    return prompts


def _targets(scene: Scene, min_area: int = MIN_AREA) -> Array:
    """Return the ids that are large enough: rows of (level, id, weight)."""
    rows = []
    for level in range(3):
        identities, areas = np.unique(scene.levels[level], return_counts=True)
        for identity, area in zip(identities, areas, strict=True):
            if identity > 0 and area >= min_area:
                background = level == OBJECT and identity <= scene.regions
                preference = 0.3 if background else (1.0, 2.5, 4.0)[level]
                rows.append((level, identity, preference * area**0.5))
    return np.array(rows, np.float64)


def _pick(sampler: Sampler, targets: Array) -> Target:
    """Choose a target: a listed id, or, as with a grid of points, the id at a random pixel."""
    rng, scene = sampler.rng, sampler.scene
    if rng.random() < 0.3:
        row, column = (int(rng.integers(0, extent)) for extent in scene.size)
        level = int(rng.integers(0, 1 + np.count_nonzero(scene.levels[:, row, column])))
        identity = int(scene.levels[min(level, 2), row, column])
        if identity > 0 and sampler.mask(min(level, 2), identity).sum() >= MIN_AREA:
            return min(level, 2), identity
    chosen = targets[rng.choice(len(targets), p=targets[:, 2] / targets[:, 2].sum())]
    return int(chosen[0]), int(chosen[1])


def _fill(prompts: PromptSet, index: int, sampler: Sampler, target: Target, kind: str) -> None:
    """Write one prompt and its valid levels."""
    level, points = target[0], sample_points(sampler.rng, sampler.mask(*target), kind)
    for position, (x, y, label) in enumerate(points):
        prompts.coords[index, position] = x, y
        prompts.labels[index, position] = label
    prompts.target[index] = level
    prompts.boxed[index] = points[0][2] == BOX_START
    for other, other_id in _valid_targets(sampler, target, points):
        prompts.masks[index, other] = sampler.low_res(other, other_id)
        prompts.valid[index, other] = True


def _valid_targets(
    sampler: Sampler, target: Target, points: list[tuple[float, float, int]]
) -> list[Target]:
    """Return the target and, without a box, ids of other levels that agree with every point."""
    labelled_pixels = [
        (int(y), int(x), label == FOREGROUND) for x, y, label in points if label in (0, 1)
    ]
    valid_targets = [target]
    if points[0][2] == BOX_START:
        return valid_targets
    row, column, _ = labelled_pixels[0]
    for other in {0, 1, 2} - {target[0]}:
        other_id = int(sampler.scene.levels[other, row, column])
        mask = sampler.mask(other, other_id)
        agrees = all(mask[y, x] == inside for y, x, inside in labelled_pixels)
        if other_id > 0 and agrees and sampler.low_res(other, other_id).sum() >= 4:
            valid_targets.append((other, other_id))
    return valid_targets
