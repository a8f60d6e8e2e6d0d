"""Prompts for synthetic scenes: what a user would click or draw to get an object.

Points are (x, y) in pixels of the scene, pixel ``i`` has its centre at ``i + 0.5``. Masks are at a
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
SMALLEST_AREA = 300
"""Visible pixels below which training does not ask for an object."""
SMALLEST_MEASURED = 24**2
"""The same for measuring: 1.5 cells of the embedding grid squared."""
KINDS = ("click", "box", "box and click", "clicks")
"""Kinds of prompts in training; the evaluation has "centre" and "exact box" too."""
Target = tuple[int, int]
"""Level and id."""
FOREGROUND, BACKGROUND, BOX_START, BOX_END, PADDING = 1, 0, 2, 3, -1


@dataclass
class PromptSet:
    """P prompts on one scene.

    ``coords`` float32 ``[P,4,2]``, ``labels`` float32 ``[P,4]``, ``masks`` uint8 ``[P,3,s,s]``
    (what the prompt may mean, by level), ``valid`` bool ``[P,3]``, ``target`` int64 ``[P]``
    (the level that was meant) and ``boxed`` bool ``[P]``.
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
        """Visible pixels of an id: bool ``[S,S]``."""
        key = (level, identity)
        if key not in self.full:
            self.full[key] = self.scene.levels[level] == identity
        return self.full[key]

    def low_res(self, level: int, identity: int) -> Array:
        """The same at a quarter of the side: uint8 ``[s,s]``."""
        key = (level, identity)
        if key not in self.small:
            coverage = self.mask(level, identity).astype(np.uint8) * 255
            side = coverage.shape[0] // 4
            small = cv2.resize(coverage, (side, side), interpolation=cv2.INTER_AREA)
            self.small[key] = (small > 127).astype(np.uint8)
        return self.small[key]


def sample_prompts(
    scene: Scene, count: int, shares: tuple[float, ...], rng: np.random.Generator
) -> PromptSet:
    """Draw ``count`` prompts, for objects of all sizes and levels, of KINDS in these shares."""
    sampler = Sampler(scene, rng)
    targets = _targets(scene)
    picked = [_pick(sampler, targets) for _ in range(count)]
    kinds = rng.choice(KINDS, count, p=shares)
    return prompts_for(sampler, picked, [str(kind) for kind in kinds])


def sample_targets(scene: Scene, count: int, rng: np.random.Generator) -> list[Target]:
    """Draw distinct (level, id) pairs to measure with."""
    rows = _targets(scene, SMALLEST_MEASURED)
    count = min(count, len(rows))
    chosen = rng.choice(len(rows), count, replace=False, p=rows[:, 2] / rows[:, 2].sum())
    return [(int(level), int(identity)) for level, identity in rows[chosen, :2]]


def prompts_for(sampler: Sampler, targets: list[Target], kinds: list[str]) -> PromptSet:
    """One prompt of the given kind for each target."""
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


def _targets(scene: Scene, smallest: int = SMALLEST_AREA) -> Array:
    """Ids large enough to ask for: rows of (level, id, weight)."""
    rows = []
    for level in range(3):
        identities, areas = np.unique(scene.levels[level], return_counts=True)
        for identity, area in zip(identities, areas, strict=True):
            if identity > 0 and area >= smallest:
                background = level == OBJECT and identity <= scene.regions
                liking = 0.3 if background else (1.0, 2.5, 4.0)[level]
                rows.append((level, identity, liking * area**0.5))
    return np.array(rows, np.float64)


def _pick(sampler: Sampler, targets: Array) -> Target:
    """Choose what is meant: a listed id, or, as a grid of clicks does, whatever lies at a pixel."""
    rng, scene = sampler.rng, sampler.scene
    if rng.random() < 0.3:
        row, column = (int(rng.integers(0, extent)) for extent in scene.size)
        level = int(rng.integers(0, 1 + np.count_nonzero(scene.levels[:, row, column])))
        identity = int(scene.levels[min(level, 2), row, column])
        if identity > 0 and sampler.mask(min(level, 2), identity).sum() >= SMALLEST_AREA:
            return min(level, 2), identity
    chosen = targets[rng.choice(len(targets), p=targets[:, 2] / targets[:, 2].sum())]
    return int(chosen[0]), int(chosen[1])


def _fill(prompts: PromptSet, index: int, sampler: Sampler, target: Target, kind: str) -> None:
    """Write one prompt and everything it may mean."""
    level, points = target[0], _points(sampler.rng, sampler.mask(*target), kind)
    for position, (x, y, label) in enumerate(points):
        prompts.coords[index, position] = x, y
        prompts.labels[index, position] = label
    prompts.target[index] = level
    prompts.boxed[index] = points[0][2] == BOX_START
    for other, meaning in _meanings(sampler, target, points):
        prompts.masks[index, other] = sampler.low_res(other, meaning)
        prompts.valid[index, other] = True


def _points(rng: np.random.Generator, mask: Array, kind: str) -> list[tuple[float, float, int]]:
    """Clicks and corners (x, y, label) of one prompt; a box comes first."""
    points: list[tuple[float, float, int]] = []
    if kind in ("box", "box and click"):
        points += _box(mask, _jitter(rng))
    if kind == "exact box":
        points += _box(mask, np.zeros(4))
    if kind in ("click", "box and click"):
        points.append(_click(rng, mask, FOREGROUND))
    if kind == "centre":
        points.append(_centre(mask))
    if kind == "clicks":
        points += [_click(rng, mask, FOREGROUND) for _ in range(int(rng.integers(1, 4)))]
        if len(points) < 3:
            points.append(_click(rng, _surroundings(mask), BACKGROUND))
    return points


def _meanings(
    sampler: Sampler, target: Target, points: list[tuple[float, float, int]]
) -> list[Target]:
    """The intended (level, id) and, unless a box was drawn, others that agree with every click."""
    clicks = [(int(y), int(x), label == FOREGROUND) for x, y, label in points if label in (0, 1)]
    found = [target]
    if points[0][2] == BOX_START:
        return found
    row, column, _ = clicks[0]
    for other in {0, 1, 2} - {target[0]}:
        meaning = int(sampler.scene.levels[other, row, column])
        mask = sampler.mask(other, meaning)
        agrees = all(mask[y, x] == inside for y, x, inside in clicks)
        if meaning > 0 and agrees and sampler.low_res(other, meaning).sum() >= 4:
            found.append((other, meaning))
    return found


def _window(mask: Array) -> tuple[int, int, int, int]:
    """Bounding box (top, left, bottom, right), end exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _click(rng: np.random.Generator, mask: Array, label: int) -> tuple[float, float, int]:
    """A random pixel of the mask or, as people do, one far from its edge."""
    top, left, bottom, right = _window(mask)
    crop = mask[top:bottom, left:right]
    if rng.random() < 0.45:
        depth = cv2.distanceTransform(np.pad(crop, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        crop = depth >= rng.uniform(0.5, 1.0) * depth.max()
    inside = np.flatnonzero(crop)
    row, column = divmod(int(inside[rng.integers(len(inside))]), crop.shape[1])
    return left + column + 0.5, top + row + 0.5, label


def _centre(mask: Array) -> tuple[float, float, int]:
    """The pixel farthest from the edge, where the evaluation of the SAM paper clicks first."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column) + 0.5, float(row) + 0.5, FOREGROUND


def _surroundings(mask: Array) -> Array:
    """Pixels outside the mask within its slightly enlarged bounding box."""
    top, left, bottom, right = _window(mask)
    margin = 6 + max(bottom - top, right - left) // 5
    near = np.zeros_like(mask)
    near[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
    return np.asarray(near & ~mask) if (near & ~mask).any() else ~mask


def _jitter(rng: np.random.Generator) -> Array:
    """How far a hand misses the sides of a box, as shares of its extent; sometimes not at all."""
    return np.clip(rng.normal(0, 0.05, 4) * (rng.random() < 0.7), -0.12, 0.12)


def _box(mask: Array, jitter: Array) -> list[tuple[float, float, int]]:
    """The bounding box as two corner points, its sides (left, top, right, bottom) moved."""
    top, left, bottom, right = _window(mask)
    sides = np.array([right - left, bottom - top, right - left, bottom - top])
    x0, y0, x1, y1 = np.array([left, top, right, bottom]) + jitter * sides
    return [(float(x0), float(y0), BOX_START), (float(x1), float(y1), BOX_END)]
