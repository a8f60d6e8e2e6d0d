"""Evaluate exported graphs on held-out scenes: other seeds and other generator settings.

Every IoU is between thresholded low-res logits and the ground truth at the same resolution,
256 x 256 for an image of 1024 pixels; both are exact there, so that a perfect mask scores 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from samserve.tuning.measures import PIXELS_PER_LOGIT, mask_iou, widest_error
from scipy.optimize import linear_sum_assignment

from training.data import enlarged
from training.prompts import (
    MIN_EVALUATED_AREA,
    PromptSet,
    Sampler,
    Target,
    prompts_for,
    sample_targets,
)
from training.runtime import SIDE, OnnxPair
from training.scenes import HELD_OUT, NESTED, SUBPART, Scene, SceneSettings, generate_scene

Array = NDArray[Any]
HELD_OUT_SEED, NESTED_SEED = 900_000_000, 950_000_000
"""Not drawn in training, whose seeds have four numbers."""
ENLARGED_SIDE = 512
PROMPT_KINDS = ("centre", "point", "box", "exact box")
BOXES = {"box": "exact box", "hand-drawn box": "box"}
"""Names of measures: the bounding box of the ground truth, and one with hand-drawn errors."""
REFINEMENTS = 2
"""Correcting points after the first one."""
POINT, BOX, CORRECTED = "one point (three masks)", "box", "corrected by points"
"""Kinds of prompts by which predicted IoU is reported."""
CHOICE = "one point (highest predicted IoU)"
"""The one of the three masks that has the highest predicted IoU."""
TWO_LEVELS, TINY = "two levels or more at IoU", ", subparts under 1.5 cells"
COVERED = (0.5, 0.75)
"""IoUs from which an output counts as covering a level."""
SIZES = {"up to 4 cells": 64.0, "up to 10 cells": 160.0, "larger": float("inf")}
"""Names of size classes and their largest square root of the area, in model pixels."""


@dataclass
class Case:
    """One point for the contact sheets: image, point (x, y), mask and target ``[256,256]``."""

    image: Array
    point: Array
    mask: Array
    target: Array
    iou: float


@dataclass
class IouPairs:
    """Predicted and true IoU and stability of the same masks."""

    predicted: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    stability: list[float] = field(default_factory=list)


@dataclass
class Scores:
    """Values by measure, predicted and true IoUs by kind of prompt, and points."""

    values: dict[str, list[float]] = field(default_factory=dict)
    iou_pairs: dict[str, IouPairs] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def add(self, measure_name: str, values: Array) -> None:
        """Append one value per prompt."""
        self.values.setdefault(measure_name, []).extend(float(value) for value in values)

    def add_ious(self, prompt: str, logits: Array, predicted: Array, true: Array) -> None:
        """Record masks ``[...,256,256]`` with their predicted and true IoU ``[...]``."""
        iou_pairs = self.iou_pairs.setdefault(prompt, IouPairs())
        iou_pairs.predicted.extend(predicted.ravel().tolist())
        iou_pairs.true.extend(true.ravel().tolist())
        iou_pairs.stability.extend(stability(logits).ravel().tolist())

    def add_cases(self, scene: Scene, prompts: PromptSet, masks: Array, iou: Array) -> None:
        """Record points for the contact sheets."""
        goals, points = _target_masks(prompts), prompts.coords[:, 0]
        for mask, goal, point, value in zip(masks, goals, points, iou, strict=True):
            self.cases.append(Case(scene.image, point, mask, goal, float(value)))


def held_out_scenes(count: int, first: int, settings: SceneSettings) -> Iterator[Scene]:
    """Yield scenes; every second one is painted at 512 pixels and enlarged, as small photos are."""
    for seed in range(first, first + count):
        if seed % 2:
            yield generate_scene(seed, SIDE, settings)
        else:
            yield enlarged(generate_scene(seed, ENLARGED_SIDE, settings), SIDE)


def measure(pair: OnnxPair, scenes: int, prompts: int) -> Scores:
    """Measure ``prompts`` objects of every scene: by one point, boxes, and up to three points.

    A first point is either at the object's centre, as in the SAM paper's evaluation, or anywhere
    on it, as in training. Sequences of points begin at the centre.

    Objects, parts and subparts are drawn without replacement with a weight that grows with the
    square root of their area (`training.prompts`).
    """
    scores = Scores()
    for index, scene in enumerate(held_out_scenes(scenes, HELD_OUT_SEED, HELD_OUT)):
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        sampler, targets = Sampler(scene, rng), sample_targets(scene, prompts, rng)
        embedding = pair.embed(scene.image, scene.size)

        def decode(
            prompts: PromptSet, masks: Array | None = None, source: Array = embedding
        ) -> tuple[Array, Array]:
            return pair.decode(source, prompts.coords, prompts.labels, masks)

        prompt_sets = {
            kind: prompts_for(sampler, targets, [kind] * len(targets)) for kind in PROMPT_KINDS
        }
        _score_points(scores, "centre", prompt_sets["centre"], *decode(prompt_sets["centre"]))
        choice, best_iou = _score_points(
            scores, "anywhere", prompt_sets["point"], *decode(prompt_sets["point"])
        )
        scores.add_cases(scene, prompt_sets["point"], choice, best_iou)
        for name, kind in BOXES.items():
            _score_boxes(scores, name, prompt_sets[kind], *decode(prompt_sets[kind]))
        _score_refinement(scores, prompt_sets["centre"], decode)
    return scores


def measure_ambiguity(pair: OnnxPair, scenes: int, prompts: int) -> Scores:
    """Place points on subparts of nested scenes and count the levels that the three outputs cover.

    A point lies on an object, its part and its subpart. Outputs and levels are matched one to one:
    two levels need two outputs. Subparts below the minimum size of `measure` are reported
    separately.
    """
    scores = Scores()
    for index, scene in enumerate(held_out_scenes(scenes, NESTED_SEED, NESTED)):
        rng = np.random.default_rng((NESTED_SEED, index))
        sampler, targets = Sampler(scene, rng), _subparts(scene, prompts)
        if not targets:
            continue
        prompt_set = prompts_for(sampler, targets, ["point"] * len(targets))
        logits, _ = pair.decode(
            pair.embed(scene.image, scene.size), prompt_set.coords, prompt_set.labels
        )
        iou = mask_iou(logits[:, 1:, None], prompt_set.masks[:, None])
        areas = np.array([sampler.mask(*target).sum() for target in targets])
        groups = {"": areas >= MIN_EVALUATED_AREA, TINY: areas < MIN_EVALUATED_AREA}
        for threshold in COVERED:
            two = np.array([matched(one >= threshold) >= 2 for one in iou])
            for name, group in groups.items():
                scores.add(f"{TWO_LEVELS} {threshold}{name}", two[prompt_set.valid.all(1) & group])
    return scores


def matched(pairs: Array) -> int:
    """Return the size of the largest one-to-one matching in bool ``[3,3]``."""
    chosen = linear_sum_assignment(pairs, maximize=True)
    return int(pairs[chosen].sum())


def _subparts(scene: Scene, count: int) -> list[Target]:
    identities, areas = np.unique(scene.levels[SUBPART], return_counts=True)
    largest = np.argsort(-areas, kind="stable")
    found = [int(identities[index]) for index in largest if identities[index] > 0]
    return [(SUBPART, identity) for identity in found[:count]]


def _target_masks(prompts: PromptSet) -> Array:
    return prompts.masks[np.arange(len(prompts.target)), prompts.target]


def _score_points(
    scores: Scores, position: str, prompts: PromptSet, logits: Array, predicted: Array
) -> tuple[Array, Array]:
    """Score one point: all tokens, the mask of highest predicted IoU, and the predicted IoUs.

    Returns the chosen masks ``[Q,256,256]`` and their IoUs with the nearest valid level.
    """
    goal, rows = _target_masks(prompts), np.arange(len(logits))
    iou = mask_iou(logits, goal[:, None])
    best = iou[:, 1:].max(1)
    level_iou = mask_iou(logits[:, :, None], prompts.masks[:, None]) * prompts.valid[:, None]
    choice = 1 + predicted[:, 1:].argmax(1)
    best_iou = level_iou.max(2)
    scores.add(f"one point {position}, best of three", best)
    scores.add(f"one point {position}, highest predicted IoU", iou[rows, choice])
    scores.add(
        f"one point {position}, highest predicted IoU, any valid level", best_iou[rows, choice]
    )
    scores.add(f"one point {position}, token 0", iou[:, 0])
    side, smallest = PIXELS_PER_LOGIT * np.sqrt(goal.sum((1, 2))), 0.0
    for name, largest in SIZES.items():
        group = (side > smallest) & (side <= largest)
        scores.add(f"one point {position}, best of three, {name}", best[group])
        smallest = largest
    scores.add_ious(POINT, logits[:, 1:], predicted[:, 1:], best_iou[:, 1:])
    scores.add_ious(CHOICE, logits[rows, choice], predicted[rows, choice], best_iou[rows, choice])
    return logits[rows, choice] > 0, best_iou[rows, choice]


def stability(logits: Array) -> Array:
    """Return AutoMask's stability score of logits, over the last two axes."""
    narrow, wide = (logits > 1).sum((-2, -1)), (logits > -1).sum((-2, -1))
    return np.asarray(narrow / np.maximum(wide, 1))


def _score_boxes(
    scores: Scores, name: str, prompts: PromptSet, logits: Array, predicted: Array
) -> None:
    """Score boxes: token 0 (`MULTIMASK_SINGLE`), and the best predicted of 1..3 (the default)."""
    goal = _target_masks(prompts)
    choice, iou = 1 + predicted[:, 1:].argmax(1), mask_iou(logits[:, 0], goal)
    scores.add(name, iou)
    scores.add_ious(BOX, logits[:, 0], predicted[:, 0], iou)
    scores.add(
        f"{name}, highest predicted IoU", mask_iou(logits[np.arange(len(goal)), choice], goal)
    )


def _score_refinement(
    scores: Scores, prompts: PromptSet, decode: Callable[..., tuple[Array, Array]]
) -> None:
    """Score corrections of token 0 by points in its widest error, with logits fed back."""
    goal = _target_masks(prompts)
    logits, _ = decode(prompts)
    for step in range(REFINEMENTS):
        for row in range(len(goal)):
            point, label = widest_error(logits[row, 0] > 0, goal[row] > 0)
            prompts.coords[row, 1 + step], prompts.labels[row, 1 + step] = point, label
        logits, predicted = decode(prompts, logits[:, 0])
        iou = mask_iou(logits[:, 0], goal)
        scores.add(f"{2 + step} points", iou)
        scores.add_ious(CORRECTED, logits[:, 0], predicted[:, 0], iou)
