"""Prompts of the training steps: each is drawn from the seed and the number of its step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from samserve.core import run_lengths
from samserve.models.families.base import Family, ImageTransform
from samserve.tuning.embeddings import Source
from samserve.tuning.errors import TuningError
from samserve.tuning.examples import Example
from samserve.tuning.interactive import PromptBatch
from samserve.tuning.prompts import BOX_START, LabelledPoint, sample_points
from samserve.types import Array, BoolArray, FloatArray, Label, UInt8Array

KINDS, PROBABILITIES = ("point", "box", "box and point"), (0.5, 0.4, 0.1)
LEVELS = 3
MIN_PIXELS = 4
"""Low-resolution pixels of an object that is trained."""
DRAWS = 100
"""Images that are drawn for one with an object that is large enough."""
REMEMBERED = 64
"""Images whose low-resolution masks are kept in memory."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Images per step, prompts per image, and the part of the images that is from old data."""

    images: int = 2
    prompts: int = 12
    replay: float = 0.3

    def __post_init__(self) -> None:
        """Raise `TuningError` for numbers that are out of range."""
        if self.images < 1 or self.prompts < 2:
            raise TuningError("a step needs an image and two prompts at least")
        # Written so that NaN fails.
        if not 0 <= self.replay < 1:
            raise TuningError(
                f"the part of the images from old data must be at least 0 and below 1, "
                f"not {self.replay:g}"
            )


@dataclass(frozen=True, slots=True)
class Micro:
    """One image of a step: the tensors that it begins with, see `Source`, and its prompts."""

    inputs: tuple[Tensor, ...]
    prompts: PromptBatch


class Batches:
    """The batches of a run, by step."""

    def __init__(
        self,
        parts: tuple[Sequence[Example], Sequence[Example]],
        source: Source,
        family: Family,
        sampling: Sampling,
        seed: int,
    ) -> None:
        """Draw from new and old examples; the old ones may be none."""
        self._trained, self._replay = parts
        self._source, self._family = source, family
        self._sampling, self._seed = sampling, seed
        self._goals: OrderedDict[str, UInt8Array] = OrderedDict()
        weights = [target.weight for example in self._trained for target in example.targets]
        self._mean_weight = float(np.mean(weights))

    def of_step(self, step: int) -> list[Micro]:
        """Return the batch of a step."""
        rng = np.random.default_rng((self._seed, step, 1))
        return [self._micro(rng) for _ in range(self._sampling.images)]

    def _micro(self, rng: np.random.Generator) -> Micro:
        old = bool(self._replay) and rng.random() < self._sampling.replay
        example, goals = self._drawn(self._replay if old else self._trained, rng)
        inputs = self._source.of(example)
        prompts = self._prompts(example, goals, rng, 1.0 if old else self._mean_weight)
        return Micro(tuple(inputs.values()), prompts)

    def _drawn(
        self, examples: Sequence[Example], rng: np.random.Generator
    ) -> tuple[Example, UInt8Array]:
        """Return an image with an object that is large enough, and the masks of all objects."""
        for _ in range(DRAWS):
            example = examples[int(rng.integers(len(examples)))]
            goals = self._low_res(example, self._source.transform(example))
            if goals.sum((1, 2)).max() >= MIN_PIXELS:
                return example, goals
        raise TuningError(
            f"the objects of {DRAWS} images are too small: none covers {MIN_PIXELS} pixels of the "
            f"low-resolution logits"
        )

    def _prompts(
        self, example: Example, goals: UInt8Array, rng: np.random.Generator, mean_weight: float
    ) -> PromptBatch:
        transform = self._source.transform(example)
        usable = np.flatnonzero(goals.sum((1, 2)) >= MIN_PIXELS)
        count = self._sampling.prompts
        chosen = rng.choice(usable, count, replace=len(usable) < count)
        kind = str(rng.choice(KINDS, p=PROBABILITIES))
        rows = [self._row(example, transform, int(index), kind, rng) for index in chosen]
        coords, labels = (np.stack(parts) for parts in zip(*rows, strict=True))
        masks = np.zeros((count, LEVELS, *goals.shape[1:]), np.uint8)
        valid = np.zeros((count, LEVELS), bool)
        for row, index in enumerate(chosen):
            levels = _levels(goals, int(index), coords[row, 0] if kind == "point" else None)
            masks[row, : len(levels)], valid[row, : len(levels)] = goals[levels], True
        weights = [example.targets[index].weight / mean_weight for index in chosen]
        return PromptBatch(
            coords=torch.from_numpy(coords)[None],
            labels=torch.from_numpy(labels)[None],
            masks=torch.from_numpy(masks)[None],
            valid=torch.from_numpy(valid)[None],
            target=torch.zeros(1, count, dtype=torch.int64),
            boxed=torch.full((1, count), kind != "point"),
            weight=torch.tensor([weights], dtype=torch.float32),
            tail=tail(labels[0]),
        )

    def _row(
        self,
        example: Example,
        transform: ImageTransform,
        index: int,
        kind: str,
        rng: np.random.Generator,
    ) -> tuple[FloatArray, FloatArray]:
        mask = run_lengths.decode(example.targets[index].mask)
        return arranged(self._family, transform, sample_points(rng, mask, kind))

    def _low_res(self, example: Example, transform: ImageTransform) -> UInt8Array:
        """Return the masks of all objects in the frame of the logits: uint8 ``[A, L, L]``."""
        packed = self._goals.pop(example.key, None)
        side = transform.mask_side
        if packed is None:
            masks = [run_lengths.decode(target.mask) for target in example.targets]
            packed = np.packbits(np.stack([low_res(mask, transform) for mask in masks]), axis=-1)
        self._goals[example.key] = packed
        if len(self._goals) > REMEMBERED:
            self._goals.popitem(last=False)
        return np.unpackbits(packed, axis=-1, count=side)


def low_res(mask: BoolArray, transform: ImageTransform) -> UInt8Array:
    """Return a mask of the image in the frame of the logits: uint8 ``[L, L]``, 0 or 1."""
    step = transform.model_side / transform.mask_side
    width, height = (
        max(1, round(extent / step))
        for extent in (transform.resized.width, transform.resized.height)
    )
    coverage = mask.astype(np.uint8) * np.uint8(255)
    goal = np.zeros((transform.mask_side, transform.mask_side), np.uint8)
    resized = cv2.resize(coverage, (width, height), interpolation=cv2.INTER_AREA)
    goal[:height, :width] = resized > 127
    return goal


def arranged(
    family: Family, transform: ImageTransform, prompt: Sequence[LabelledPoint]
) -> tuple[FloatArray, FloatArray]:
    """Return the decoder's inputs for points and a box of the image."""
    labels = [label for _, _, label in prompt]
    xy = np.array([(x, y) for x, y, _ in prompt], np.float64).reshape(-1, 2)
    inside = transform.points_to_model(xy)
    boxed = bool(labels) and labels[0] == BOX_START
    box = inside[:2].reshape(4) if boxed else None
    first = 2 if boxed else 0
    return family.prompt(inside[first:], [Label(label) for label in labels[first:]], box)


def tail(labels: Array) -> int:
    """Return how many of a prompt's last points follow those of the user: corners and padding.

    Another point is inserted before them.  All families have the corners either first or last.
    """
    user = np.flatnonzero((labels == 0) | (labels == 1))
    if len(user):
        return len(labels) - 1 - int(user[-1])
    # Only a box, and padding after it where the family has the corners first.
    return int(np.count_nonzero(labels < 0)) or len(labels)


def _levels(goals: UInt8Array, target: int, point: Array | None) -> list[int]:
    """Return the target, and for a point up to two other objects that it is on, by size."""
    if point is None:
        return [target]
    column, row = (min(int(value) // 4, goals.shape[1] - 1) for value in point)
    areas = goals.sum((1, 2))
    same = areas[target]
    others = [
        int(index)
        for index in np.flatnonzero(goals[:, row, column])
        # Those of the same size are the same object, annotated twice.
        if index != target and not 0.8 < areas[index] / max(same, 1) < 1.25
    ]
    return [target, *sorted(others, key=lambda index: -int(areas[index]))[: LEVELS - 1]]
