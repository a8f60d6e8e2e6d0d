"""Synthetic scenes with exact ground truth at three nested levels.

A scene is a photo-like image of overlapping objects on one to three background regions.
Ground truth is three id maps (object, part, subpart); an id's visible pixels are a mask.
The seed determines everything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_camera import photograph
from training.scene_canvas import OBJECT, PART, SUBPART, Painter
from training.scene_groups import add_group
from training.scene_objects import add_object
from training.scene_settings import HELD_OUT, LAYERED, NESTED, TRAINING, SceneSettings, varied
from training.scene_shapes import fill
from training.scene_textures import material, random_colour

__all__ = [
    "HELD_OUT", "LAYERED", "NESTED", "OBJECT", "PART", "SUBPART", "TRAINING",
    "Scene", "SceneSettings", "generate_scene", "varied",
]  # fmt: skip
Array = NDArray[Any]
Seed = tuple[int, ...]


@dataclass
class Scene:
    """``image`` uint8 ``[S,S,3]``, ``levels`` int32 ``[3,S,S]`` ids or 0, valid ``size`` (h, w).

    Ids up to ``regions`` are backgrounds.
    """

    image: Array
    levels: Array
    size: tuple[int, int]
    regions: int


def generate_scene(seed: Seed | int, size: int = 512, settings: SceneSettings = TRAINING) -> Scene:
    """Paint the scene of this seed."""
    rng = np.random.default_rng(seed)
    base = material(rng, size, size, random_colour(rng), settings.texture_contrast)
    painter = Painter(rng, base, _valid_size(rng, size), settings)
    painter.levels[OBJECT] = painter.take_id()
    _split_background(painter)
    if rng.random() < settings.litter_chance:
        _add_litter(painter)
    regions = painter.next_id - 1
    _add_objects(painter)
    image = photograph(rng, painter.image, settings.camera)
    valid = painter.valid
    image[valid[0] :], image[:, valid[1] :] = 0, 0
    painter.levels[:, valid[0] :], painter.levels[:, :, valid[1] :] = 0, 0
    return Scene(image, painter.levels, valid, regions)


def _valid_size(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Return a valid size; most scenes are not square, like most photos."""
    short = int(size * rng.uniform(0.6, 1.0))
    return [(size, size), (size, short), (short, size)][int(rng.choice(3, p=[0.4, 0.3, 0.3]))]


def _split_background(painter: Painter) -> None:
    """Paint zero to two more regions, each below a wavy line: horizons, table edges, walls."""
    rng, size = painter.rng, painter.size
    for _ in range(int(rng.choice(3, p=[0.45, 0.37, 0.18]))):
        angle = rng.choice([0.0, 0.0, np.pi / 2, rng.uniform(0, 6.3)])
        t = np.linspace(-1.5, 1.5, 60)
        wave = rng.uniform(-0.3, 0.3) + t * rng.normal(0, 0.1)
        wave += rng.uniform(0, 0.08) * np.sin(t * rng.uniform(1, 12))
        edge = np.concatenate([np.stack([t, wave], 1), [[1.5, 2.0], [-1.5, 2.0]]])
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        alpha = fill(size, size, (edge @ rotation.T + 0.5) * size)
        whole = (slice(0, size), slice(0, size))
        surface = material(rng, size, size, random_colour(rng), painter.settings.texture_contrast)
        painter.paint(whole, alpha, surface, OBJECT)


def _add_litter(painter: Painter) -> None:
    """Paint crumbs, scratches and specks; they have no ids and belong to what they lie on."""
    rng = painter.rng
    for _ in range(int(rng.integers(20, 160))):
        centre, axes = rng.integers(0, painter.size, 2), rng.integers(1, 7, 2)
        colour = painter.image[centre[1], centre[0]] + rng.normal(0, 45) + rng.normal(0, 10, 3)
        angle = float(rng.uniform(0, 180))
        cv2.ellipse(
            painter.image, centre.tolist(), axes.tolist(), angle, 0, 360, colour.tolist(), -1
        )


def _add_objects(painter: Painter) -> None:
    """Paint single objects of all sizes, mostly the larger ones first, and sometimes a group."""
    rng, settings = painter.rng, painter.settings
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    grouped = rng.random() < settings.group_chance
    if grouped:
        count //= 3
    sides = sorted((_random_side(painter) for _ in range(count)), reverse=rng.random() < 0.75)
    below = int(rng.integers(0, len(sides) + 1)) if grouped else len(sides)
    for side in sides[:below]:
        add_object(painter, side)
    if grouped:
        add_group(painter)
    for side in sides[below:]:
        add_object(painter, side)


def _random_side(painter: Painter) -> float:
    """Return the longest side of an object in pixels, log-uniform."""
    low, high = painter.settings.smallest, painter.settings.largest * painter.size
    return float(np.exp(painter.rng.uniform(np.log(low), np.log(high))))
