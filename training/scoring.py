"""Ask an exported pair about held-out scenes: other seeds and other generator settings.

Every IoU is between thresholded low-res logits and the truth at the same resolution, 256 x 256 for
an image of 1024 pixels; both are exact there, so that a perfect mask scores 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from training.data import enlarged
from training.prompts import (
    PADDING,
    SMALLEST_MEASURED,
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
"""No training run draws them: its seeds have four words."""
ENLARGED_SIDE = 512
PIXELS_PER_LOGIT = 4
ASKED = ("centre", "click", "box", "exact box")
BOXES = {"box": "exact box", "box by hand": "box"}
"""Names of questions: the bounding box of the truth, and one that misses it as a hand does."""
REFINEMENTS = 2
"""Correcting clicks after the first one."""
CLICK, BOX, CORRECTED = "one click (three masks)", "box", "corrected by clicks"
"""Kinds of prompts by which predicted IoU is told."""
CHOICE = "one click (own choice)"
"""Among the three masks."""
TWO_LEVELS, TINY = "two levels or more at IoU", ", subparts under 1.5 cells"
COVERED = (0.5, 0.75)
"""IoUs from which an output counts as covering a level."""
SIZES = {"up to 4 cells": 64.0, "up to 10 cells": 160.0, "larger": float("inf")}
"""Names of size classes and their largest square root of the area, in model pixels."""


@dataclass
class Case:
    """One click for the pictures: image, point (x, y), chosen mask and target ``[256,256]``."""

    image: Array
    point: Array
    mask: Array
    target: Array
    iou: float


@dataclass
class Judged:
    """Predicted and true IoU and stability of the same masks."""

    predicted: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    stability: list[float] = field(default_factory=list)


@dataclass
class Scores:
    """IoUs by question, what the model thought of its answers by kind of prompt, and clicks."""

    values: dict[str, list[float]] = field(default_factory=dict)
    judged: dict[str, Judged] = field(default_factory=dict)
    cases: list[Case] = field(default_factory=list)

    def add(self, question: str, values: Array) -> None:
        """Append one value per prompt."""
        self.values.setdefault(question, []).extend(float(value) for value in values)

    def judge(self, prompt: str, logits: Array, predicted: Array, true: Array) -> None:
        """Remember masks ``[...,256,256]`` with their predicted and true IoU ``[...]``."""
        judged = self.judged.setdefault(prompt, Judged())
        judged.predicted.extend(predicted.ravel().tolist())
        judged.true.extend(true.ravel().tolist())
        judged.stability.extend(stability(logits).ravel().tolist())

    def keep(self, scene: Scene, prompts: PromptSet, masks: Array, iou: Array) -> None:
        """Remember clicks for the pictures."""
        goals, points = _goal(prompts), prompts.coords[:, 0]
        for mask, goal, point, value in zip(masks, goals, points, iou, strict=True):
            self.cases.append(Case(scene.image, point, mask, goal, float(value)))


def mask_iou(masks: Array, goals: Array) -> Array:
    """IoU of logits or masks (set where above 0) and goals, broadcast, over the last two axes."""
    chosen, goal = masks > 0, goals > 0
    common = (chosen & goal).sum((-2, -1))
    return np.asarray(common / np.maximum((chosen | goal).sum((-2, -1)), 1))


def held_out_scenes(count: int, first: int, settings: SceneSettings) -> Iterator[Scene]:
    """Every second scene is painted at 512 pixels and enlarged, as small photographs are."""
    for seed in range(first, first + count):
        if seed % 2:
            yield generate_scene(seed, SIDE, settings)
        else:
            yield enlarged(generate_scene(seed, ENLARGED_SIDE, settings), SIDE)


def measure(pair: OnnxPair, scenes: int, prompts: int) -> Scores:
    """Ask for ``prompts`` objects of every scene: by clicks, by boxes, by three clicks.

    A first click is either at the object's centre, as in the evaluation of the SAM paper, or as
    in training anywhere on it. Three clicks begin at the centre.

    Objects are drawn without replacement with a weight that grows with the square root of their
    area (`training.prompts`), parts and subparts among them.
    """
    scores = Scores()
    for index, scene in enumerate(held_out_scenes(scenes, HELD_OUT_SEED, HELD_OUT)):
        rng = np.random.default_rng((HELD_OUT_SEED, index))
        sampler, targets = Sampler(scene, rng), sample_targets(scene, prompts, rng)
        embedding = pair.embed(scene.image, scene.size)

        def decode(
            asked: PromptSet, masks: Array | None = None, source: Array = embedding
        ) -> tuple[Array, Array]:
            return pair.decode(source, asked.coords, asked.labels, masks)

        asked = {kind: prompts_for(sampler, targets, [kind] * len(targets)) for kind in ASKED}
        _score_clicks(scores, "centre", asked["centre"], *decode(asked["centre"]))
        choice, known = _score_clicks(scores, "anywhere", asked["click"], *decode(asked["click"]))
        scores.keep(scene, asked["click"], choice, known)
        for name, kind in BOXES.items():
            _score_boxes(scores, name, asked[kind], *decode(asked[kind]))
        _score_refinement(scores, asked["centre"], decode)
    return scores


def measure_ambiguity(pair: OnnxPair, scenes: int, prompts: int) -> Scores:
    """Click subparts of nested scenes and count the levels that the three outputs cover.

    A click lies on an object, its part and its subpart. Output and level are matched one to one:
    two levels need two outputs. Subparts below the smallest size that `measure` asks for are told
    apart.
    """
    scores = Scores()
    for index, scene in enumerate(held_out_scenes(scenes, NESTED_SEED, NESTED)):
        rng = np.random.default_rng((NESTED_SEED, index))
        sampler, targets = Sampler(scene, rng), _subparts(scene, prompts)
        if not targets:
            continue
        clicks = prompts_for(sampler, targets, ["click"] * len(targets))
        logits, _ = pair.decode(pair.embed(scene.image, scene.size), clicks.coords, clicks.labels)
        iou = mask_iou(logits[:, 1:, None], clicks.masks[:, None])
        areas = np.array([sampler.mask(*target).sum() for target in targets])
        groups = {"": areas >= SMALLEST_MEASURED, TINY: areas < SMALLEST_MEASURED}
        for threshold in COVERED:
            two = np.array([matched(one >= threshold) >= 2 for one in iou])
            for name, group in groups.items():
                scores.add(f"{TWO_LEVELS} {threshold}{name}", two[clicks.valid.all(1) & group])
    return scores


def matched(pairs: Array) -> int:
    """Size of the largest one-to-one matching in bool ``[3,3]``."""
    chosen = linear_sum_assignment(pairs, maximize=True)
    return int(pairs[chosen].sum())


def _subparts(scene: Scene, most: int) -> list[Target]:
    identities, areas = np.unique(scene.levels[SUBPART], return_counts=True)
    largest = np.argsort(-areas, kind="stable")
    found = [int(identities[index]) for index in largest if identities[index] > 0]
    return [(SUBPART, identity) for identity in found[:most]]


def _goal(prompts: PromptSet) -> Array:
    return prompts.masks[np.arange(len(prompts.target)), prompts.target]


def _score_clicks(
    scores: Scores, where: str, prompts: PromptSet, logits: Array, predicted: Array
) -> tuple[Array, Array]:
    """One click: all tokens, the model's own choice, and how well it knows.

    Returns the chosen masks ``[Q,256,256]`` and their IoUs with the nearest valid meaning.
    """
    goal, rows = _goal(prompts), np.arange(len(logits))
    iou = mask_iou(logits, goal[:, None])
    best = iou[:, 1:].max(1)
    meanings = mask_iou(logits[:, :, None], prompts.masks[:, None]) * prompts.valid[:, None]
    choice = 1 + predicted[:, 1:].argmax(1)
    known = meanings.max(2)
    scores.add(f"one click {where}, best of three", best)
    scores.add(f"one click {where}, own choice", iou[rows, choice])
    scores.add(f"one click {where}, own choice, any valid meaning", known[rows, choice])
    scores.add(f"one click {where}, token 0", iou[:, 0])
    side, smallest = PIXELS_PER_LOGIT * np.sqrt(goal.sum((1, 2))), 0.0
    for name, largest in SIZES.items():
        group = (side > smallest) & (side <= largest)
        scores.add(f"one click {where}, best of three, {name}", best[group])
        smallest = largest
    scores.judge(CLICK, logits[:, 1:], predicted[:, 1:], known[:, 1:])
    scores.judge(CHOICE, logits[rows, choice], predicted[rows, choice], known[rows, choice])
    return logits[rows, choice] > 0, known[rows, choice]


def stability(logits: Array) -> Array:
    """AutoMask's stability score of logits, over the last two axes."""
    narrow, wide = (logits > 1).sum((-2, -1)), (logits > -1).sum((-2, -1))
    return np.asarray(narrow / np.maximum(wide, 1))


def _score_boxes(
    scores: Scores, name: str, prompts: PromptSet, logits: Array, predicted: Array
) -> None:
    """A box alone: token 0 (`MULTIMASK_SINGLE`), and the best predicted of 1..3 (the default)."""
    goal = _goal(prompts)
    choice, iou = 1 + predicted[:, 1:].argmax(1), mask_iou(logits[:, 0], goal)
    scores.add(name, iou)
    scores.judge(BOX, logits[:, 0], predicted[:, 0], iou)
    scores.add(f"{name}, own choice", mask_iou(logits[np.arange(len(goal)), choice], goal))


def _score_refinement(
    scores: Scores, prompts: PromptSet, decode: Callable[..., tuple[Array, Array]]
) -> None:
    """Correct token 0 by clicks in its widest error, feeding the logits back."""
    goal = _goal(prompts)
    logits, _ = decode(prompts)
    for turn in range(REFINEMENTS):
        for row in range(len(goal)):
            point, label = widest_error(logits[row, 0] > 0, goal[row] > 0)
            prompts.coords[row, 1 + turn], prompts.labels[row, 1 + turn] = point, label
        logits, predicted = decode(prompts, logits[:, 0])
        iou = mask_iou(logits[:, 0], goal)
        scores.add(f"{2 + turn} clicks", iou)
        scores.judge(CORRECTED, logits[:, 0], predicted[:, 0], iou)


def widest_error(mask: Array, goal: Array) -> tuple[tuple[float, float], int]:
    """Centre (x, y in model pixels) of a low-res mask's widest error, and what belongs there."""
    wrong = np.pad(mask != goal, 1).astype(np.uint8)
    depth = cv2.distanceTransform(wrong, cv2.DIST_L2, 3)[1:-1, 1:-1]
    if not depth.any():
        return (0.0, 0.0), PADDING
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = (float(value + 0.5) * PIXELS_PER_LOGIT for value in (column, row))
    return (x, y), int(goal[row, column])
