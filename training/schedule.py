"""What each training step does: how large its batch is and how fast it learns.

A long stationary part, in which every step draws its shape by chance and the rate is constant, then
a cool-down on larger images in which the rate falls to nothing. Until the cool-down begins, a run
is the same for any number of steps in all, so that a longer run may continue a shorter one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

JUDGING_SHARE = 0.1
"""Steps after the last one, in which only the predicted IoU is fitted (`training.judging`)."""
COOLDOWN = 0.3
"""Share of the steps, at the end."""
WARMUP_STEPS = 100


@dataclass(frozen=True)
class Shape:
    """One step's batch: its size, the share of layered scenes, and whether settings vary.

    ``kinds`` are the shares of `training.prompts.KINDS`.
    """

    images: int
    prompts: int
    side: int
    layered: float = 0.0
    varied: bool = False
    kinds: tuple[float, ...] = (0.54, 0.24, 0.08, 0.14)


MORE_BOXES = (0.44, 0.34, 0.08, 0.14)
MORE_CLICKS = (0.7, 0.14, 0.04, 0.12)

EARLY_STEPS = 4200
EARLY = ((0.75, Shape(3, 12, 384)), (0.25, Shape(2, 12, 512)))
STATIONARY = ((0.7, Shape(3, 12, 384, 0.2, True)), (0.3, Shape(2, 12, 512, 0.2, True)))
FINAL = (
    (0.4, Shape(2, 12, 512, 0.4, True, MORE_BOXES)),
    (0.6, Shape(1, 16, 1024, 0.4, True, MORE_BOXES)),
)
JUDGING = (
    (0.5, Shape(2, 16, 512, 0.2, True, MORE_CLICKS)),
    (0.5, Shape(1, 20, 1024, 0.2, True, MORE_CLICKS)),
)
"""Shares and shapes. Small images teach most for their cost; what is hardest, meanings within each
other and scenes of every kind, comes after the first steps, and the served size last. Boxes need
the longest; what single clicks mean is hardest to judge."""


@dataclass(frozen=True)
class Schedule:
    """``steps`` in all from one ``seed``."""

    steps: int
    seed: int

    @property
    def cooldown_start(self) -> int:
        """First step of the cool-down."""
        return self.steps - round(COOLDOWN * self.steps)

    @property
    def judging_steps(self) -> int:
        """Steps after the last one."""
        return max(1, round(JUDGING_SHARE * self.steps))

    def shape(self, step: int) -> Shape:
        """Batch of this step."""
        choices = EARLY if step < EARLY_STEPS else STATIONARY
        if step >= self.cooldown_start:
            choices = FINAL if step < self.steps else JUDGING
        shares = [share for share, _ in choices]
        drawn = np.random.default_rng((self.seed, step, 1)).choice(len(choices), p=shares)
        return choices[int(drawn)][1]

    def rate(self, step: int) -> float:
        """Learning rate of this step as a share of the peak."""
        warm = min(1.0, (step + 1) / WARMUP_STEPS)
        left = (self.steps - step) / max(1, self.steps - self.cooldown_start)
        return warm * min(1.0, left)
