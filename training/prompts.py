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

from training.scenes import OBJECT, Scene

Array = NDArray[Any]
MAX_POINTS = 4
MIN_AREA = 300
"""Minimum of visible pixels of a target in training."""
MIN_EVALUATED_AREA = 24**2
"""The same in evaluation: 1.5 cells of the embedding grid squared."""
KINDS = ("point", "box", "box and point", "points")
"""Kinds of prompts in training; the evaluation has "centre" and "exact box" too."""
Target = tuple[int, int]
"""Level and id."""
FOREGROUND, BACKGROUND, BOX_START, BOX_END, PADDING = 1, 0, 2, 3, -1


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
    level, points = target[0], _points(sampler.rng, sampler.mask(*target), kind)
    for position, (x, y, label) in enumerate(points):
        prompts.coords[index, position] = x, y
        prompts.labels[index, position] = label
    prompts.target[index] = level
    prompts.boxed[index] = points[0][2] == BOX_START
    for other, other_id in _valid_targets(sampler, target, points):
        prompts.masks[index, other] = sampler.low_res(other, other_id)
        prompts.valid[index, other] = True


def _points(rng: np.random.Generator, mask: Array, kind: str) -> list[tuple[float, float, int]]:
    """Return points and box corners (x, y, label) of one prompt; a box comes first."""
    points: list[tuple[float, float, int]] = []
    if kind in ("box", "box and point"):
        points += _box(mask, _jitter(rng))
    if kind == "exact box":
        points += _box(mask, np.zeros(4))
    if kind in ("point", "box and point"):
        points.append(_random_point(rng, mask, FOREGROUND))
    if kind == "centre":
        points.append(_centre(mask))
    if kind == "points":
        points += [_random_point(rng, mask, FOREGROUND) for _ in range(int(rng.integers(1, 4)))]
        if len(points) < 3:
            points.append(_random_point(rng, _surroundings(mask), BACKGROUND))
    return points


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


def _window(mask: Array) -> tuple[int, int, int, int]:
    """Return the bounding box (top, left, bottom, right), end exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _random_point(rng: np.random.Generator, mask: Array, label: int) -> tuple[float, float, int]:
    """Return a random pixel of the mask or, as users place it, one far from its edge."""
    top, left, bottom, right = _window(mask)
    crop = mask[top:bottom, left:right]
    if rng.random() < 0.45:
        depth = cv2.distanceTransform(np.pad(crop, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        crop = depth >= rng.uniform(0.5, 1.0) * depth.max()
    inside = np.flatnonzero(crop)
    row, column = divmod(int(inside[rng.integers(len(inside))]), crop.shape[1])
    return left + column + 0.5, top + row + 0.5, label


def _centre(mask: Array) -> tuple[float, float, int]:
    """Return the pixel farthest from the edge, the first point in the SAM paper's evaluation."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column) + 0.5, float(row) + 0.5, FOREGROUND


def _surroundings(mask: Array) -> Array:
    """Return the pixels outside the mask within its slightly enlarged bounding box."""
    top, left, bottom, right = _window(mask)
    margin = 6 + max(bottom - top, right - left) // 5
    near = np.zeros_like(mask)
    near[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
    return np.asarray(near & ~mask) if (near & ~mask).any() else ~mask


def _jitter(rng: np.random.Generator) -> Array:
    """Return the errors of a hand-drawn box's sides, relative to its extent; sometimes 0."""
    return np.clip(rng.normal(0, 0.05, 4) * (rng.random() < 0.7), -0.12, 0.12)


def _box(mask: Array, jitter: Array) -> list[tuple[float, float, int]]:
    """Return the bounding box as two corners, its sides (left, top, right, bottom) moved."""
    top, left, bottom, right = _window(mask)
    sides = np.array([right - left, bottom - top, right - left, bottom - top])
    x0, y0, x1, y1 = np.array([left, top, right, bottom]) + jitter * sides
    return [(float(x0), float(y0), BOX_START), (float(x1), float(y1), BOX_END)]
