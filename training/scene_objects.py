"""Single objects: silhouette, surface, relief, shadow, parts and subparts."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_canvas import OBJECT, PART, SUBPART, Painter, Window
from training.scene_relief import emboss, shade
from training.scene_shapes import random_shape
from training.scene_textures import material

Array = NDArray[Any]
MIN_WINDOW = 10
"""Minimum side in pixels of a window; smaller ones are not painted."""
MIN_PART = 20


def add_object(painter: Painter, side: float) -> None:
    """Paint one object of this longest side with parts and subparts at a random position."""
    rng = painter.rng
    aspect = rng.uniform(0.4, 1.0)
    height, width = (side, side * aspect) if rng.random() < 0.5 else (side * aspect, side)
    alpha = random_shape(rng, max(14, int(height)), max(14, int(width)))
    top = int(rng.uniform(-0.02, 1.02) * painter.valid[0] - 0.5 * alpha.shape[0])
    left = int(rng.uniform(-0.02, 1.02) * painter.valid[1] - 0.5 * alpha.shape[1])
    window, alpha = painter.clip(alpha, top, left)
    if min(alpha.shape) < MIN_WINDOW:
        return
    owner = paint_object(painter, window, alpha, _surface(painter, window, alpha))
    if rng.random() < painter.settings.part_chance and min(alpha.shape) > 2 * MIN_PART:
        _add_parts(painter, window, alpha, owner, PART)


def paint_object(painter: Painter, window: Window, alpha: Array, surface: Array) -> int:
    """Paint a shadow, then the object with a hard or soft edge; return its id."""
    rng = painter.rng
    if rng.random() < 0.4:
        _cast_shadow(painter, window, alpha)
    if rng.random() < 0.15:
        alpha = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(0.7, 2.0))
    return painter.paint(window, alpha, surface, OBJECT)


def _surface(painter: Painter, window: Window, alpha: Array) -> Array:
    """Return a shaded surface for a silhouette."""
    rng = painter.rng
    colour = painter.colour_over(window)
    height, width = alpha.shape
    surface = material(rng, height, width, colour, painter.settings.texture_contrast)
    if rng.random() < 0.12:
        surface = emboss(rng, surface, alpha)
    return shade(rng, surface, alpha) if rng.random() < 0.6 else surface


def _cast_shadow(painter: Painter, window: Window, alpha: Array) -> None:
    """Darken the canvas below and beside the object."""
    rng = painter.rng
    offset = 0.02 * painter.size * rng.uniform(0.2, 1.5) + 0.04 * max(alpha.shape)
    margin = int(2 * offset) + 2
    top, left = window[0].start - margin, window[1].start - margin
    wide = np.pad(alpha, margin)
    shift = rng.uniform(-1, 1, 2) * offset
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]], np.float32)
    dark = cv2.warpAffine(wide, move, wide.shape[1::-1])
    dark = cv2.blur(dark, (margin // 2 + 1, margin // 2 + 1))
    area, dark = painter.clip(dark, top, left)
    painter.image[area] *= (1 - rng.uniform(0.2, 0.65) * dark)[..., None]


def _add_parts(painter: Painter, window: Window, parent: Array, owner: int, level: int) -> None:
    """Paint parts clipped to the parent, and their subparts."""
    rng = painter.rng
    if painter.settings.inset_chance and rng.random() < painter.settings.inset_chance:
        _add_part(painter, window, _inset(rng, parent), owner, level)
        return
    height, width = parent.shape
    for _ in range(int(rng.integers(1, 5 if level == PART else 3))):
        rows = int(max(MIN_PART, height * rng.uniform(0.2, 0.7)))
        columns = int(max(MIN_PART, width * rng.uniform(0.2, 0.7)))
        if rows >= height or columns >= width:
            return
        top, left = int(rng.integers(0, height - rows)), int(rng.integers(0, width - columns))
        local = parent[top : top + rows, left : left + columns]
        alpha = random_shape(rng, rows, columns) * local
        area = (
            slice(window[0].start + top, window[0].start + top + rows),
            slice(window[1].start + left, window[1].start + left + columns),
        )
        _add_part(painter, area, alpha, owner, level)


def _add_part(painter: Painter, window: Window, alpha: Array, owner: int, level: int) -> None:
    """Paint one part over the window, and possibly subparts in it."""
    part = painter.paint(window, alpha, _surface(painter, window, alpha), level, owner)
    deeper = level == PART and min(alpha.shape) > 2 * MIN_PART
    if deeper and painter.rng.random() < painter.settings.subpart_chance:
        _add_parts(painter, window, alpha, part, SUBPART)


def _inset(rng: np.random.Generator, parent: Array) -> Array:
    """Return the same silhouette, smaller, somewhere inside."""
    height, width = parent.shape
    scale = rng.uniform(0.45, 0.85)
    shift = 0.5 + rng.uniform(-0.25, 0.25, 2)
    move = np.array([[scale, 0, 0], [0, scale, 0]], np.float32)
    move[:, 2] = (1 - scale) * np.array([width, height]) * shift
    return np.asarray(cv2.warpAffine(parent, move, (width, height)) * parent)
