"""Synthetic scenes with exact ground truth at three nested levels.

A scene is a photograph-like picture of overlapping objects on one to three background regions.
Ground truth is three id maps (object, part, subpart); an id's visible pixels are a mask.
Everything follows from the seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_camera import photograph
from training.scene_shapes import fill, random_shape
from training.scene_textures import material, near_colour, noise, random_colour

Array = NDArray[Any]
Window = tuple[slice, slice]
OBJECT, PART, SUBPART = 0, 1, 2


@dataclass(frozen=True)
class SceneSettings:
    """What scenes look like. ``smallest`` is a fraction of the side."""

    objects: tuple[int, int] = (2, 16)
    smallest: float = 0.09
    largest: float = 0.95
    part_chance: float = 0.65
    low_contrast: float = 0.15
    texture_contrast: float = 0.55
    camera: float = 0.8


TRAINING = SceneSettings()
HELD_OUT = SceneSettings(
    objects=(4, 24),
    smallest=0.07,
    largest=0.7,
    part_chance=0.35,
    low_contrast=0.1,
    texture_contrast=0.8,
    camera=1.2,
)


@dataclass
class Scene:
    """``image`` uint8 ``[S,S,3]``, ``levels`` int32 ``[3,S,S]`` ids or 0, valid ``size`` (h, w).

    Ids up to ``regions`` are backgrounds.
    """

    image: Array
    levels: Array
    size: tuple[int, int]
    regions: int


class _Painter:
    """A canvas under construction: colours, ids and the next free id."""

    def __init__(self, rng: np.random.Generator, size: int, settings: SceneSettings) -> None:
        self.rng, self.size, self.settings = rng, size, settings
        self.valid = _crop(rng, size)
        self.levels = np.zeros((3, size, size), np.int32)
        self.next_id = 1
        self.base = random_colour(rng)
        self.image = material(rng, size, size, self.base, settings.texture_contrast)
        self.levels[OBJECT] = self.take_id()

    def take_id(self) -> int:
        """Hand out ids in order of painting."""
        self.next_id += 1
        return self.next_id - 1

    def paint(
        self, window: Window, alpha: Array, surface: Array, level: int, owner: int = 0
    ) -> int:
        """Put a surface over the window and return its id; finer levels below it are erased.

        Parts stay inside the ``owner``, which is an id of the next coarser level.
        """
        view = self.image[window]
        view += (surface - view) * alpha[..., None]
        inside = alpha > 0.5
        if owner:
            inside &= self.levels[level - 1][window] == owner
        identity = self.take_id()
        self.levels[level][window][inside] = identity
        for finer in range(level + 1, 3):
            self.levels[finer][window][inside] = 0
        return identity

    def colour_over(self, window: Window) -> Array:
        """A colour for something painted here, sometimes hard to tell from what is there."""
        if self.rng.random() > self.settings.low_contrast:
            return random_colour(self.rng)
        below = self.image[window].mean((0, 1))
        return near_colour(self.rng, below, self.rng.uniform(14, 40))


def generate_scene(seed: int, size: int = 512, settings: SceneSettings = TRAINING) -> Scene:
    """Paint the scene of this seed."""
    rng = np.random.default_rng(seed)
    painter = _Painter(rng, size, settings)
    _split_background(painter)
    regions = painter.next_id - 1
    count = int(rng.integers(settings.objects[0], settings.objects[1] + 1))
    if rng.random() < 0.25:
        _scatter_alike(painter)
        count //= 3
    sides = sorted((_random_side(painter) for _ in range(count)), reverse=rng.random() < 0.75)
    for side in sides:
        _add_object(painter, side)
    image = photograph(rng, painter.image, settings.camera)
    valid = painter.valid
    image[valid[0] :], image[:, valid[1] :] = 0, 0
    painter.levels[:, valid[0] :], painter.levels[:, :, valid[1] :] = 0, 0
    return Scene(image, painter.levels, valid, regions)


def _crop(rng: np.random.Generator, size: int) -> tuple[int, int]:
    """Photographs are rarely square: shorten one side in most scenes."""
    short = int(size * rng.uniform(0.6, 1.0))
    return [(size, size), (size, short), (short, size)][int(rng.choice(3, p=[0.4, 0.3, 0.3]))]


def _split_background(painter: _Painter) -> None:
    """Zero to two more regions, each below a wavy line: horizons, table edges, walls."""
    rng, size = painter.rng, painter.size
    for _ in range(int(rng.choice(3, p=[0.4, 0.4, 0.2]))):
        angle = rng.choice([0.0, 0.0, np.pi / 2, rng.uniform(0, 6.3)])
        t = np.linspace(-1.5, 1.5, 60)
        wave = rng.uniform(-0.3, 0.3) + t * rng.normal(0, 0.1)
        wave += rng.uniform(0, 0.08) * np.sin(t * rng.uniform(1, 12))
        edge = np.concatenate([np.stack([t, wave], 1), [[1.5, 2.0], [-1.5, 2.0]]])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        alpha = fill(size, size, (edge @ turn.T + 0.5) * size)
        whole = (slice(0, size), slice(0, size))
        surface = material(rng, size, size, random_colour(rng), painter.settings.texture_contrast)
        painter.paint(whole, alpha, surface, OBJECT)


def _random_side(painter: _Painter) -> float:
    """Longest side of an object in pixels, log-uniform."""
    low, high = painter.settings.smallest, painter.settings.largest
    return painter.size * float(np.exp(painter.rng.uniform(np.log(low), np.log(high))))


def _window(painter: _Painter, alpha: Array, top: int, left: int) -> tuple[Window, Array]:
    """Clip a silhouette placed at (top, left) to the canvas."""
    bottom, right = top + alpha.shape[0], left + alpha.shape[1]
    rows = slice(*np.clip((top, bottom), 0, painter.size).tolist())
    columns = slice(*np.clip((left, right), 0, painter.size).tolist())
    clipped = alpha[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return (rows, columns), clipped


def _add_object(painter: _Painter, side: float) -> None:
    """One object with shadow, parts and subparts at a random place."""
    rng = painter.rng
    aspect = rng.uniform(0.4, 1.0)
    height, width = (side, side * aspect) if rng.random() < 0.5 else (side * aspect, side)
    alpha = random_shape(rng, max(14, int(height)), max(14, int(width)))
    top = int(rng.uniform(-0.02, 1.02) * painter.valid[0] - 0.5 * alpha.shape[0])
    left = int(rng.uniform(-0.02, 1.02) * painter.valid[1] - 0.5 * alpha.shape[1])
    window, alpha = _window(painter, alpha, top, left)
    if min(alpha.shape) < 12:
        return
    owner = _put(painter, window, alpha, material_for(painter, window, alpha))
    if rng.random() < painter.settings.part_chance and side > 0.1 * painter.size:
        _add_parts(painter, window, alpha, owner, PART)


def material_for(painter: _Painter, window: Window, alpha: Array) -> Array:
    """A lit surface for a silhouette."""
    rng = painter.rng
    colour = painter.colour_over(window)
    surface = material(rng, *alpha.shape, colour, painter.settings.texture_contrast)
    return shade(rng, surface, alpha) if rng.random() < 0.6 else surface


def _put(painter: _Painter, window: Window, alpha: Array, surface: Array) -> int:
    """Shadow first, then the object, with a hard or a soft edge."""
    rng = painter.rng
    if rng.random() < 0.4:
        _cast_shadow(painter, window, alpha)
    if rng.random() < 0.15:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.7, 2.0))
    return painter.paint(window, alpha, surface, OBJECT)


def _cast_shadow(painter: _Painter, window: Window, alpha: Array) -> None:
    """Darken below and beside the object."""
    rng = painter.rng
    reach = 0.02 * painter.size * rng.uniform(0.2, 1.5) + 0.04 * max(alpha.shape)
    margin = int(2 * reach) + 2
    top, left = window[0].start - margin, window[1].start - margin
    wide = np.pad(alpha, margin)
    shift = rng.uniform(-1, 1, 2) * reach
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    dark = cv2.warpAffine(wide, move, wide.shape[1::-1])
    dark = cv2.blur(dark, (margin // 2 + 1, margin // 2 + 1))
    area, dark = _window(painter, dark, top, left)
    painter.image[area] *= (1 - rng.uniform(0.2, 0.65) * dark)[..., None]


def shade(rng: np.random.Generator, surface: Array, alpha: Array) -> Array:
    """Fake relief: light from one side on the blurred silhouette taken as a height field."""
    height, width = alpha.shape
    quarter = max(8, width // 4), max(8, height // 4)
    small = cv2.resize(alpha, quarter, interpolation=cv2.INTER_AREA)
    swell = cv2.GaussianBlur(small, (0, 0), 1 + rng.uniform(0.06, 0.25) * min(small.shape))
    down, across = np.gradient(swell)
    angle = rng.uniform(0, 2 * np.pi)
    slope = across * np.cos(angle) + down * np.sin(angle)
    slope = slope / (np.abs(slope).max() + 1e-6) * rng.uniform(0.15, 0.6)
    light = cv2.resize(slope.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    surface = surface * (1 + light)[..., None]
    if rng.random() < 0.15:
        spot = np.maximum(light / (np.abs(light).max() + 1e-6), 0) ** 6
        surface = surface + (120 * spot)[..., None]
    return np.asarray(surface, np.float32)


def _add_parts(painter: _Painter, window: Window, parent: Array, owner: int, level: int) -> None:
    """Distinct areas clipped inside the parent, and theirs in turn."""
    rng = painter.rng
    height, width = parent.shape
    for _ in range(int(rng.integers(1, 5 if level == PART else 3))):
        rows = int(max(20, height * rng.uniform(0.2, 0.7)))
        columns = int(max(20, width * rng.uniform(0.2, 0.7)))
        if rows >= height or columns >= width:
            return
        top, left = int(rng.integers(0, height - rows)), int(rng.integers(0, width - columns))
        local = parent[top : top + rows, left : left + columns]
        alpha = random_shape(rng, rows, columns) * local
        area = (
            slice(window[0].start + top, window[0].start + top + rows),
            slice(window[1].start + left, window[1].start + left + columns),
        )
        part = painter.paint(area, alpha, material_for(painter, area, alpha), level, owner)
        if level == PART and rng.random() < 0.35 and min(rows, columns) > 0.1 * painter.size:
            _add_parts(painter, area, alpha, part, SUBPART)


def _scatter_alike(painter: _Painter) -> None:
    """The same object many times over: coins, fruit, windows, buttons."""
    rng, valid = painter.rng, painter.valid
    rows, columns = (int(v) for v in rng.integers(2, 8, 2))
    side = 0.95 * min(valid[0] / rows, valid[1] / columns) * rng.uniform(0.55, 1)
    alpha = random_shape(rng, max(14, int(side * rng.uniform(0.6, 1))), max(14, int(side)))
    colour, contrast = random_colour(rng), rng.uniform(0.1, 1)
    relief = noise(rng, *alpha.shape, side / 3, 0.7) * rng.uniform(0, 30)
    for row in range(rows):
        for column in range(columns):
            y, x = np.array([row, column]) + 0.5 + rng.uniform(-0.1, 0.1, 2)
            top = int(y * valid[0] / rows - alpha.shape[0] / 2)
            left = int(x * valid[1] / columns - alpha.shape[1] / 2)
            window, piece = _window(painter, alpha, top, left)
            if min(piece.shape) < 12:
                continue
            surface = material(rng, *piece.shape, near_colour(rng, colour, 6), contrast)
            surface = surface + relief[: piece.shape[0], : piece.shape[1], None]
            _put(painter, window, piece, shade(rng, surface, piece))
