"""Shading of surfaces with relief."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_shapes import plain
from training.scene_textures import noise

Array = NDArray[Any]


def shade(rng: np.random.Generator, surface: Array, alpha: Array) -> Array:
    """Shade with light from one side; the blurred silhouette is the height field."""
    height, width = alpha.shape
    quarter = max(8, width // 4), max(8, height // 4)
    small = cv2.resize(alpha, quarter, interpolation=cv2.INTER_AREA)
    swell = cv2.GaussianBlur(small, (0, 0), 1 + rng.uniform(0.06, 0.25) * min(small.shape))
    slope = _slope(rng, swell) * rng.uniform(0.15, 0.6)
    light = cv2.resize(slope, (width, height), interpolation=cv2.INTER_LINEAR)
    surface = surface * (1 + light)[..., None]
    if rng.random() < 0.15:
        spot = np.maximum(light / (np.abs(light).max() + 1e-6), 0) ** 6
        surface = surface + (120 * spot)[..., None]
    return np.asarray(surface, np.float32)


def emboss(rng: np.random.Generator, surface: Array, alpha: Array) -> Array:
    """Shade raised figures and a rim, as on coins, buttons and mouldings.

    They are not parts: only their edges differ from the rest.
    """
    height, width = alpha.shape
    field = noise(rng, height, width, max(height, width) / 4, 0.6) * rng.uniform(0, 0.5)
    for _ in range(int(rng.integers(2, 7))):
        rows, columns = (int(max(8, v)) for v in rng.uniform(0.12, 0.6, 2) * (height, width))
        rows, columns = min(rows, height), min(columns, width)
        top, left = (
            int(rng.integers(0, height - rows + 1)),
            int(rng.integers(0, width - columns + 1)),
        )
        field[top : top + rows, left : left + columns] += rng.normal() * plain(rng, rows, columns)
    if rng.random() < 0.5:
        depth = cv2.distanceTransform((alpha > 0.5).astype(np.uint8), cv2.DIST_L2, 3)
        field += rng.uniform(0.3, 1.5) * (depth < rng.uniform(0.04, 0.15) * min(height, width))
    smooth = cv2.GaussianBlur(field, (0, 0), rng.uniform(0.6, 2.5))
    light = _slope(rng, smooth) * rng.uniform(0.2, 0.9)
    return np.asarray(surface * (1 + light)[..., None], np.float32)


def _slope(rng: np.random.Generator, field: Array) -> Array:
    """Return the slope of a height field in a random direction, scaled to -1..1."""
    down, across = np.gradient(field)
    angle = rng.uniform(0, 2 * np.pi)
    slope = across * np.cos(angle) + down * np.sin(angle)
    return np.asarray(slope / (np.abs(slope).max() + 1e-6), np.float32)
