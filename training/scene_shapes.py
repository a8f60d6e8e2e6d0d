"""Silhouettes of synthetic objects: float32 coverage ``[h,w]`` in 0..1 on their own canvas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Shape = Callable[[np.random.Generator, int, int], Array]
_SHIFT = 4


def fill(height: int, width: int, *contours: Array) -> Array:
    """Fill closed contours ``[n,2]`` (x, y in pixels), antialiased; inner ones cut holes."""
    canvas = np.zeros((height, width), np.uint8)
    fixed = [np.round(contour * 2**_SHIFT).astype(np.int32) for contour in contours]
    cv2.fillPoly(canvas, fixed, 255, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def _fit(outline: Array, rng: np.random.Generator, height: int, width: int) -> Array:
    """Rotate a unit outline (within -1..1) and stretch it to fill the canvas."""
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    rotated = outline @ rotation.T
    low, high = rotated.min(0), rotated.max(0)
    scale = (np.array([width, height]) - 4) / np.maximum(high - low, 1e-3)
    return np.asarray((rotated - low) * scale + 2, np.float32)


def _angles(count: int) -> Array:
    return np.linspace(0, 2 * np.pi, count, endpoint=False)


def ellipse_outline(rng: np.random.Generator) -> Array:
    """Return a superellipse: from a diamond to a rounded rectangle."""
    power = rng.choice([1.0, 1.0, 0.6, 0.35])
    angle, aspect = _angles(72), rng.uniform(0.35, 1)
    c, s = np.cos(angle), np.sin(angle)
    x, y = np.sign(c) * np.abs(c) ** power, np.sign(s) * np.abs(s) ** power
    return np.stack([x, aspect * y], 1)


def blob_outline(rng: np.random.Generator) -> Array:
    """Return a smooth closed curve with a few lobes."""
    angle, radius = _angles(96), np.ones(96)
    for order in range(1, 7):
        size = rng.normal(0, 0.32 / order**0.9)
        radius += size * np.cos(order * angle + rng.uniform(0, 6.3))
    radius = np.maximum(radius, 0.15)
    return np.stack([radius * np.cos(angle), rng.uniform(0.4, 1) * radius * np.sin(angle)], 1)


def polygon_outline(rng: np.random.Generator) -> Array:
    """Return a star-shaped polygon of 3 to 9 corners."""
    count = int(rng.integers(3, 10))
    angle = np.sort(_angles(count) + rng.uniform(-1.2, 1.2, count) / count)
    radius = rng.uniform(0.45, 1, count)
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1)


def box_outline(rng: np.random.Generator) -> Array:
    """Return a rectangle or trapezoid."""
    aspect, taper = rng.uniform(0.15, 1), rng.uniform(0.6, 1)
    return np.array([[-1, -aspect], [1, -aspect * taper], [1, aspect * taper], [-1, aspect]])


def profile_outline(rng: np.random.Generator) -> Array:
    """Return a silhouette that is symmetric about an axis: bottles, vases, leaves, lamps."""
    t = np.linspace(-1, 1, 40)
    knots = rng.uniform(0.12, 0.6, 6)
    half = np.interp(t, np.linspace(-1, 1, 6), knots)
    half = np.convolve(np.pad(half, 4, mode="edge"), np.ones(9) / 9, mode="valid")
    if rng.random() < 0.4:
        half = half * np.sqrt(np.clip(1 - t**2, 0, 1))
    return np.concatenate([np.stack([t, half], 1), np.stack([t[::-1], -half[::-1]], 1)])


OUTLINES = (ellipse_outline, blob_outline, polygon_outline, box_outline, profile_outline)


def plain(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return one filled outline."""
    outline = OUTLINES[int(rng.choice(5, p=[0.26, 0.3, 0.12, 0.18, 0.14]))](rng)
    return fill(height, width, _fit(outline, rng, height, width))


def disc(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return a circle or nearly one: coins, plates, balls, wheels."""
    squeeze = rng.uniform(0.8, 1) if rng.random() < 0.4 else 1.0
    radius = (min(height, width) - 3) / 2
    angle = _angles(72)
    outline = np.stack([np.cos(angle), squeeze * np.sin(angle)], 1) * radius
    return fill(height, width, outline + np.array([width, height]) / 2)


def ring(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return an outline with a hole of the same shape."""
    outline = _fit(OUTLINES[int(rng.integers(0, 4))](rng), rng, height, width)
    centre = outline.mean(0)
    hole = centre + (outline - centre) * rng.uniform(0.35, 0.8)
    return fill(height, width, outline, hole)


def stroke(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return a thin curve: a rope, stem, pole or wire, at least 5 pixels thick."""
    t = np.linspace(0, 1, 30)
    knots = rng.uniform(0.08, 0.92, (int(rng.integers(2, 5)), 2)) * (width, height)
    line = np.stack([np.interp(t, np.linspace(0, 1, len(knots)), knots[:, i]) for i in (0, 1)], 1)
    padded = np.pad(line, ((4, 4), (0, 0)), mode="edge")
    smooth = np.stack([np.convolve(padded[:, i], np.ones(9) / 9, mode="valid") for i in (0, 1)], 1)
    canvas = np.zeros((height, width), np.uint8)
    thickness = int(rng.integers(5, max(7, int(0.16 * min(height, width)))))
    fixed = np.round(smooth * 2**_SHIFT).astype(np.int32)
    cv2.polylines(canvas, [fixed], False, 255, thickness, cv2.LINE_AA, _SHIFT)
    return canvas.astype(np.float32) / 255


def compound(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return the union of a body and two to five limbs: animals, tools, vehicles."""
    canvas = np.zeros((height, width), np.float32)
    for limb in range(int(rng.integers(3, 7))):
        ratio = rng.uniform(0.5, 0.75, 2) if limb == 0 else rng.uniform(0.18, 0.55, 2)
        rows, columns = (int(max(10, v)) for v in ratio * (height, width))
        rows, columns = min(rows, height), min(columns, width)
        centre = 0.5 if limb == 0 else rng.uniform(0, 1, 2)
        top, left = (np.array([height - rows, width - columns]) * centre).astype(int)
        region = canvas[top : top + rows, left : left + columns]
        np.maximum(region, plain(rng, rows, columns), out=region)
    return canvas


SHAPES: tuple[Shape, ...] = (plain, ring, stroke, compound, disc)


def random_shape(rng: np.random.Generator, height: int, width: int) -> Array:
    """Return a random silhouette on a canvas of ``height`` x ``width``."""
    shape = SHAPES[int(rng.choice(5, p=[0.53, 0.07, 0.1, 0.24, 0.06]))]
    return shape(rng, height, width)
