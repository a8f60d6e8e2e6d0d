"""Settings of synthetic scenes, and the ones of training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class SceneSettings:
    """Settings of a scene; ``*_chance`` are probabilities.

    Objects have a longest side from ``smallest`` pixels (1.5 cells of the embedding grid) to
    ``largest`` times the scene's side. ``inset_chance`` is that of a part with the shape of its
    owner, only smaller: a rim, a pane, an iris.
    """

    objects: tuple[int, int] = (2, 18)
    smallest: float = 24.0
    largest: float = 0.95
    part_chance: float = 0.6
    subpart_chance: float = 0.45
    inset_chance: float = 0.0
    group_chance: float = 0.35
    litter_chance: float = 0.2
    low_contrast: float = 0.15
    texture_contrast: float = 0.55
    camera: float = 0.8


TRAINING = SceneSettings()
HELD_OUT = SceneSettings(
    objects=(4, 24),
    largest=0.7,
    part_chance=0.35,
    group_chance=0.25,
    litter_chance=0.3,
    low_contrast=0.1,
    texture_contrast=0.8,
    camera=1.2,
)
LAYERED = SceneSettings(
    objects=(3, 10),
    smallest=80.0,
    largest=0.9,
    part_chance=1.0,
    subpart_chance=0.8,
    inset_chance=0.4,
    group_chance=0.0,
)
"""Further training scenes, in which nearly every object has parts and subparts."""
NESTED = replace(
    HELD_OUT,
    objects=(2, 6),
    smallest=160.0,
    part_chance=1.0,
    subpart_chance=1.0,
    inset_chance=0.5,
    group_chance=0.0,
)
"""Held-out scenes for ambiguous prompts: large objects, all with parts and subparts."""


def varied(settings: SceneSettings, rng: np.random.Generator) -> SceneSettings:
    """Return random settings around these: fewer or more objects, lower or higher contrast."""
    min_objects, max_objects = settings.objects
    return replace(
        settings,
        objects=(min_objects, min_objects + int(rng.integers(3, 2 * (max_objects - min_objects)))),
        part_chance=settings.part_chance * rng.uniform(0.5, 1.0),
        litter_chance=rng.uniform(0.1, 0.4),
        low_contrast=rng.uniform(0.05, 0.25),
        texture_contrast=rng.uniform(0.3, 1.0),
        camera=rng.uniform(0.5, 1.5),
    )
