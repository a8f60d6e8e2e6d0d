"""Measure an exported pair on held-out scenes: other seeds and other generator settings.

``python -m training.evaluate --encoder E.onnx --decoder D.onnx --out overlays``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.data import PAINTED_SIDE, enlarged
from training.prompts import PADDING, PromptSet, Sampler, prompts_for, sample_targets
from training.runtime import SIDE, OnnxPair
from training.scenes import HELD_OUT, Scene, generate_scene

Array = NDArray[Any]
FIRST_SEED = 900_000_000
"""Far above the seeds of any training run."""
PIXELS_PER_LOGIT = 4
REFINEMENTS = 2
"""Correcting clicks after the first one."""


@dataclass
class Case:
    """One click for the pictures: image, point (x, y), chosen mask and target ``[256,256]``."""

    image: Array
    point: Array
    mask: Array
    target: Array
    iou: float


@dataclass
class Scores:
    """IoUs by question, predicted and true IoU of all ambiguous tokens, and every click."""

    values: dict[str, list[float]] = field(default_factory=dict)
    predicted: list[float] = field(default_factory=list)
    true: list[float] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)

    def add(self, question: str, values: Array) -> None:
        """Append one IoU per prompt."""
        self.values.setdefault(question, []).extend(float(value) for value in values)


def mask_iou(logits: Array, masks: Array) -> Array:
    """IoU of thresholded logits and masks, broadcast, over the last two axes."""
    chosen, goal = logits > 0, masks > 0
    common = (chosen & goal).sum((-2, -1))
    return np.asarray(common / np.maximum((chosen | goal).sum((-2, -1)), 1))


def held_out_scene(index: int) -> Scene:
    """Every second scene is painted at 512 pixels and enlarged, as small photographs are."""
    if index % 2:
        return generate_scene(FIRST_SEED + index, SIDE, HELD_OUT)
    return enlarged(generate_scene(FIRST_SEED + index, PAINTED_SIDE, HELD_OUT), SIDE)


def measure(pair: OnnxPair, scenes: int, prompts: int) -> Scores:
    """Ask for objects of every scene in all ways."""
    scores = Scores()
    for index in range(scenes):
        scene = held_out_scene(index)
        rng = np.random.default_rng((FIRST_SEED, index))
        sampler, targets = Sampler(scene, rng), sample_targets(scene, prompts, rng)
        embedding = pair.embed(scene.image, scene.size)

        def decode(
            asked: PromptSet, masks: Array | None = None, source: Array = embedding
        ) -> tuple[Array, Array]:
            return pair.decode(source, asked.coords, asked.labels, masks)

        clicks = prompts_for(sampler, targets, ["click"] * len(targets))
        boxes = prompts_for(sampler, targets, ["box"] * len(targets))
        _score_clicks(scores, scene, clicks, *decode(clicks))
        _score_boxes(scores, boxes, *decode(boxes))
        _score_refinement(scores, clicks, decode)
    return scores


def _goal(prompts: PromptSet) -> Array:
    return prompts.masks[np.arange(len(prompts.target)), prompts.target]


def _score_clicks(
    scores: Scores, scene: Scene, prompts: PromptSet, logits: Array, predicted: Array
) -> None:
    """One click: all tokens, the model's own choice, and how well it knows."""
    goal, rows = _goal(prompts), np.arange(len(logits))
    iou = mask_iou(logits, goal[:, None])
    meanings = mask_iou(logits[:, :, None], prompts.masks[:, None]) * prompts.valid[:, None]
    choice = 1 + predicted[:, 1:].argmax(1)
    scores.add("one click, best of three", iou[:, 1:].max(1))
    scores.add("one click, own choice", iou[rows, choice])
    scores.add("one click, own choice, any valid meaning", meanings.max(2)[rows, choice])
    scores.add("one click, token 0", iou[:, 0])
    scores.predicted.extend(predicted[:, 1:].ravel().tolist())
    scores.true.extend(meanings.max(2)[:, 1:].ravel().tolist())
    for row in rows:
        mask = logits[row, choice[row]] > 0
        value = float(meanings.max(2)[row, choice[row]])
        scores.cases.append(Case(scene.image, prompts.coords[row, 0], mask, goal[row], value))


def _score_boxes(scores: Scores, prompts: PromptSet, logits: Array, predicted: Array) -> None:
    """A box alone: the best predicted of the ambiguous tokens answers."""
    choice = 1 + predicted[:, 1:].argmax(1)
    chosen = logits[np.arange(len(logits)), choice]
    scores.add("box", mask_iou(chosen, _goal(prompts)))


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
        logits, _ = decode(prompts, logits[:, 0])
        scores.add(f"{2 + turn} clicks, token 0", mask_iou(logits[:, 0], goal))


def widest_error(mask: Array, goal: Array) -> tuple[tuple[float, float], int]:
    """Centre (x, y in model pixels) of a low-res mask's widest error, and what belongs there."""
    wrong = np.pad(mask != goal, 1).astype(np.uint8)
    depth = cv2.distanceTransform(wrong, cv2.DIST_L2, 3)[1:-1, 1:-1]
    if not depth.any():
        return (0.0, 0.0), PADDING
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = (float(value + 0.5) * PIXELS_PER_LOGIT for value in (column, row))
    return (x, y), int(goal[row, column])


def spearman(first: Array, second: Array) -> float:
    """Rank correlation (ties in order of appearance)."""
    ranks = [values.argsort(kind="stable").argsort(kind="stable") for values in (first, second)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def report(scores: Scores) -> list[str]:
    """Lines of figures."""
    predicted, true = np.array(scores.predicted), np.array(scores.true)
    lines = [f"{name}: mIoU {np.mean(values):.3f}" for name, values in scores.values.items()]
    lines.append(f"predicted against true IoU: Spearman {spearman(predicted, true):.3f}")
    lines.append(f"predicted against true IoU: mean difference {abs(predicted - true).mean():.3f}")
    good = predicted > 0.88
    quality = float(true[good].mean()) if good.any() else 0.0
    lines.append(f"predicted above 0.88: {good.mean():.3f} of masks, true IoU {quality:.3f}")
    return lines


def overlay(case: Case) -> Array:
    """Answer in green, target outlined in red, the click in yellow: BGR uint8 ``[512,512,3]``."""
    image = cv2.resize(case.image, (512, 512), interpolation=cv2.INTER_AREA)[..., ::-1].copy()
    mask, target = (
        cv2.resize(part.astype(np.uint8), (512, 512), interpolation=cv2.INTER_NEAREST)
        for part in (case.mask, case.target)
    )
    image[mask > 0] = image[mask > 0] // 2 + np.array([0, 127, 0], np.uint8)
    outlines, _ = cv2.findContours(target, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(image, outlines, -1, (0, 0, 255), 1)
    cv2.circle(image, tuple(int(value / 2) for value in case.point), 4, (0, 255, 255), -1)
    return image


def write_overlays(scores: Scores, folder: Path, count: int = 12) -> None:
    """Contact sheets of the best and the worst clicks."""
    folder.mkdir(parents=True, exist_ok=True)
    ranked = sorted(scores.cases, key=lambda case: case.iou)
    for name, cases in (("worst", ranked[:count]), ("best", ranked[::-1][:count])):
        tiles = [overlay(case) for case in cases]
        rows = [np.hstack(tiles[start : start + 4]) for start in range(0, len(tiles) - 3, 4)]
        cv2.imwrite(str(folder / f"{name}.png"), np.vstack(rows))


def main() -> None:
    """Read the command line, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoder", type=Path, required=True)
    parser.add_argument("--decoder", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=12, help="objects asked for per scene")
    parser.add_argument("--out", type=Path, help="folder for pictures")
    options = parser.parse_args()
    scores = measure(OnnxPair(options.encoder, options.decoder), options.scenes, options.prompts)
    print("\n".join(report(scores)))
    if options.out is not None:
        write_overlays(scores, options.out)


if __name__ == "__main__":
    main()
