"""Batch shape and learning rate of each training step.

In a long stationary part, every step draws its shape at random and the rate is constant. In the
cool-down on larger images the rate falls to 0. Until the cool-down begins, a run is the same for
any total number of steps, so that a longer run can continue a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

IOU_FIT_RATIO = 0.1
"""Additional steps, as a ratio, in which only predicted IoU is fitted (`training.iou_fit`)."""
COOLDOWN_RATIO = 0.3
"""Ratio of the steps, at the end."""
WARMUP_STEPS = 100


@dataclass(frozen=True)
class Shape:
    """One step's batch: its size, the ratio of layered scenes, and whether settings vary.

    ``kinds`` are the probabilities of `training.prompts.KINDS`.
    """

    images: int
    prompts: int
    side: int
    layered: float = 0.0
    varied: bool = False
    kinds: tuple[float, ...] = (0.54, 0.24, 0.08, 0.14)


MORE_BOXES = (0.44, 0.34, 0.08, 0.14)
MORE_POINTS = (0.7, 0.14, 0.04, 0.12)

EARLY_STEPS = 4200
EARLY = ((0.75, Shape(3, 12, 384)), (0.25, Shape(2, 12, 512)))
STATIONARY = ((0.7, Shape(3, 12, 384, 0.2, True)), (0.3, Shape(2, 12, 512, 0.2, True)))
FINAL = (
    (0.4, Shape(2, 12, 512, 0.4, True, MORE_BOXES)),
    (0.6, Shape(1, 16, 1024, 0.4, True, MORE_BOXES)),
)
IOU_FIT = (
    (0.5, Shape(2, 16, 512, 0.2, True, MORE_POINTS)),
    (0.5, Shape(1, 20, 1024, 0.2, True, MORE_POINTS)),
)
"""Probabilities and shapes. Small images are the most efficient; the hardest data (nested levels,
scenes of every kind) comes after the first steps, and the served size last. Boxes need the most
training; the IoU of single points is the hardest to predict."""


@dataclass(frozen=True)
class Schedule:
    """Schedule of ``steps`` training steps from one ``seed``."""

    steps: int
    seed: int

    @property
    def cooldown_start(self) -> int:
        """First step of the cool-down."""
        return self.steps - round(COOLDOWN_RATIO * self.steps)

    @property
    def iou_fit_steps(self) -> int:
        """Number of steps of the IoU fit, after the last training step."""
        return max(1, round(IOU_FIT_RATIO * self.steps))

    def shape(self, step: int) -> Shape:
        """Return the batch shape of this step."""
        choices = EARLY if step < EARLY_STEPS else STATIONARY
        if step >= self.cooldown_start:
            choices = FINAL if step < self.steps else IOU_FIT
        probabilities = [probability for probability, _ in choices]
        drawn = np.random.default_rng((self.seed, step, 1)).choice(len(choices), p=probabilities)
        return choices[int(drawn)][1]

    def rate(self, step: int) -> float:
        """Return the learning rate of this step relative to the peak."""
        warmup = min(1.0, (step + 1) / WARMUP_STEPS)
        cooldown = (self.steps - step) / max(1, self.steps - self.cooldown_start)
        return warmup * min(1.0, cooldown)
