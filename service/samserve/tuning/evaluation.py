"""Measures what a user gets: from one click, from a box, and how many clicks a good mask needs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samserve.core import run_lengths
from samserve.export.parity import ExportedModel
from samserve.models import families
from samserve.models.families.base import ImageTransform
from samserve.tuning.batches import arranged, low_res
from samserve.tuning.embeddings import Embeddings
from samserve.tuning.examples import Example
from samserve.tuning.measures import PIXELS_PER_LOGIT, mask_iou, widest_error
from samserve.tuning.prompts import PADDING, LabelledPoint, sample_points
from samserve.types import Array, FloatArray, MaskSelection, ModelInfo

GOOD_IOU = 0.9
MAX_CLICKS = 10
MAX_OBJECTS = 16
"""Objects per image that are measured."""


@dataclass(frozen=True, slots=True)
class Demands:
    """What a better model fulfils.

    It gains ``min_gain`` of the mean IoU on the held-out part, and loses at most ``max_loss`` of
    the mean IoU on old data, and of that of one click or of a box.
    """

    min_gain: float = 0.005
    max_loss: float = 0.02


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over objects: IoU of one click and of the exact box, and clicks to an IoU of 0.9.

    An object that does not reach it counts as `MAX_CLICKS`.  IoUs are those of the masks that the
    service returns by default, at the resolution of the logits.
    """

    images: int
    objects: int
    click_iou: float
    box_iou: float
    clicks: float

    @property
    def iou(self) -> float:
        """The mean of both IoUs."""
        return (self.click_iou + self.box_iou) / 2

    def text(self) -> str:
        """Return the figures as text."""
        return (
            f"one click {self.click_iou:.3f}, box {self.box_iou:.3f}, "
            f"clicks to IoU {GOOD_IOU:g} {self.clicks:.2f}"
        )

    def facts(self) -> dict[str, float]:
        """Return the figures by name."""
        return dataclasses.asdict(self)


def shortcoming(
    before: Figures, after: Figures, old: tuple[Figures, Figures] | None, demands: Demands
) -> str:
    """Return why a model is not better than before; empty if it is.

    *old* are the figures before and after on old data.
    """
    if after.iou < before.iou + demands.min_gain:
        return (
            f"the mean IoU on the held-out part went from {before.iou:.3f} to {after.iou:.3f}; "
            f"a better model gains at least {demands.min_gain:g}"
        )
    for name, one, other in (
        ("one click", before.click_iou, after.click_iou),
        ("a box", before.box_iou, after.box_iou),
    ):
        if other < one - demands.max_loss:
            return f"the mean IoU of {name} fell from {one:.3f} to {other:.3f}"
    if old is not None and old[1].iou < old[0].iou - demands.max_loss:
        return (
            f"the mean IoU on old data fell from {old[0].iou:.3f} to {old[1].iou:.3f}, by more "
            f"than {demands.max_loss:g}"
        )
    return ""


class Evaluation:
    """The same prompts for every model that is measured."""

    def __init__(
        self,
        info: ModelInfo,
        seed: int,
        *,
        max_objects: int = MAX_OBJECTS,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        self._info, self._seed = info, seed
        self._family, self._max_objects, self._done = families.of(info), max_objects, done

    def figures(self, embeddings: Embeddings, examples: Iterable[Example]) -> Figures:
        """Measure the model of the embeddings."""
        click: list[float] = []
        box: list[float] = []
        clicks: list[float] = []
        images = 0
        for example in examples:
            scene = self._scene(embeddings, example)
            if not scene.goals.size:
                continue
            images += 1
            box += list(scene.ious(scene.first("exact box"))[0])
            first, needed = scene.clicks(scene.first("centre"))
            click += list(first)
            clicks += list(needed)
            self._done()
        if not click:
            return Figures(0, 0, 0.0, 0.0, 0.0)
        return Figures(
            images, len(click), *(float(np.mean(values)) for values in (click, box, clicks))
        )

    def _scene(self, embeddings: Embeddings, example: Example) -> _Scene:
        rng = np.random.default_rng((self._seed, int(example.key[:12], 16)))
        count = min(self._max_objects, len(example.targets))
        chosen = rng.choice(len(example.targets), count, replace=False)
        transform = embeddings.transform(example)
        masks = [run_lengths.decode(example.targets[index].mask) for index in chosen]
        goals = [low_res(mask, transform) for mask in masks]
        # What covers no pixel of the logits cannot be measured.
        kept = [index for index, goal in enumerate(goals) if goal.any()]
        embedding = {name: each.numpy() for name, each in embeddings.of(example).items()}
        side = transform.mask_side
        return _Scene(
            self,
            embeddings.model,
            embedding,
            transform,
            [masks[index] for index in kept],
            np.array([goals[index] for index in kept], np.uint8).reshape(-1, side, side),
        )


@dataclass
class _Scene:
    """One image with its objects, and a model."""

    evaluation: Evaluation
    model: ExportedModel
    embedding: dict[str, Array]
    transform: ImageTransform
    masks: list[Array]
    goals: Array

    def first(self, kind: str) -> list[list[LabelledPoint]]:
        """Return a prompt of a kind for each object, in pixels of the image."""
        rng = np.random.default_rng(0)
        return [sample_points(rng, mask, kind) for mask in self.masks]

    def ious(
        self,
        prompts: Sequence[Sequence[LabelledPoint]],
        rows: Sequence[int] | None = None,
        masks: FloatArray | None = None,
    ) -> tuple[FloatArray, FloatArray]:
        """Return the IoU of the masks for prompts of some objects, and their logits."""
        rows = range(len(self.goals)) if rows is None else rows
        family = self.evaluation._family
        rowed = [arranged(family, self.transform, prompt) for prompt in prompts]
        coords, labels = (np.stack(parts)[None] for parts in zip(*rowed, strict=True))
        side = self.transform.mask_side
        given = np.zeros((0, side, side), np.float32) if masks is None else masks
        logits, iou = self.model.decode(self.embedding, coords, labels, given[None])
        dynamic = self.evaluation._info.dynamic_multimask
        chosen = []
        for row in range(len(prompts)):
            outputs = labels[0, row], iou[0, row], logits[0, row]
            choice = family.choose(MaskSelection(), *outputs, dynamic)[0]
            chosen.append(choice.logits(logits[0, row]))
        masks = np.stack(chosen)
        return mask_iou(self._inside(masks), self._inside(self.goals[list(rows)])), masks

    def clicks(self, prompts: list[list[LabelledPoint]]) -> tuple[FloatArray, FloatArray]:
        """Return the IoU of the first click, and the number of clicks to `GOOD_IOU`."""
        first, logits = self.ious(prompts)
        needed = np.full(len(prompts), float(MAX_CLICKS))
        needed[first >= GOOD_IOU] = 1
        active = [row for row in range(len(prompts)) if first[row] < GOOD_IOU]
        logits = logits[active]
        for click in range(2, MAX_CLICKS + 1):
            if not active:
                break
            for place, row in enumerate(active):
                prompts[row].append(self._correction(logits[place], self.goals[row]))
            iou, logits = self.ious([prompts[row] for row in active], active, logits)
            for place, row in enumerate(active):
                if iou[place] >= GOOD_IOU:
                    needed[row] = click
            unfinished = iou < GOOD_IOU
            active = [row for row, more in zip(active, unfinished, strict=True) if more]
            logits = logits[unfinished]
        return first, needed

    def _correction(self, logits: FloatArray, goal: Array) -> LabelledPoint:
        inside, wanted = self._inside(logits), self._inside(goal)
        (x, y), label = widest_error(inside > 0, wanted > 0)
        if label == PADDING:
            # Only an IoU below the threshold is corrected, so that there is an error.
            raise AssertionError("a perfect mask is corrected")
        scale = self.transform.resized
        image = self.transform.image
        return (x * image.width / scale.width, y * image.height / scale.height, label)

    def _inside(self, planes: Array) -> Array:
        """Return the part of planes ``[..., L, L]`` that the image covers."""
        size = self.transform.resized
        height, width = (-(-side // PIXELS_PER_LOGIT) for side in (size.height, size.width))
        return planes[..., :height, :width]
