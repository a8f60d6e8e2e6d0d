"""Prompts as a user gives them who selects an object: points and boxes, from the object's mask.

Points are (x, y) in pixels of the mask; pixel ``i`` has its centre at ``i + 0.5``.
"""

from __future__ import annotations

import cv2
import numpy as np

from samserve.types import Array, BoolArray

FOREGROUND, BACKGROUND, BOX_START, BOX_END, PADDING = 1, 0, 2, 3, -1
KINDS = ("point", "box", "box and point", "points")
"""Kinds of prompts in training; the evaluation has "centre" and "exact box" too."""
LabelledPoint = tuple[float, float, int]
"""x, y and the label."""


def sample_points(rng: np.random.Generator, mask: BoolArray, kind: str) -> list[LabelledPoint]:
    """Return points and box corners (x, y, label) of one prompt; a box comes first."""
    points: list[LabelledPoint] = []
    if kind in ("box", "box and point"):
        points += _box(mask, _jitter(rng))
    if kind == "exact box":
        points += _box(mask, np.zeros(4))
    if kind in ("point", "box and point"):
        points.append(_random_point(rng, mask, FOREGROUND))
    if kind == "centre":
        points.append(_centre(mask))
    if kind == "points":
        points += [_random_point(rng, mask, FOREGROUND) for _ in range(int(rng.integers(1, 4)))]
        if len(points) < 3:
            points.append(_random_point(rng, _surroundings(mask), BACKGROUND))
    return points


def _window(mask: BoolArray) -> tuple[int, int, int, int]:
    """Return the bounding box (top, left, bottom, right), end exclusive."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1


def _random_point(rng: np.random.Generator, mask: BoolArray, label: int) -> LabelledPoint:
    """Return a random pixel of the mask or, as users place it, one far from its edge."""
    top, left, bottom, right = _window(mask)
    crop = mask[top:bottom, left:right]
    if rng.random() < 0.45:
        depth = cv2.distanceTransform(np.pad(crop, 1).astype(np.uint8), cv2.DIST_L2, 3)[1:-1, 1:-1]
        crop = depth >= rng.uniform(0.5, 1.0) * depth.max()
    inside = np.flatnonzero(crop)
    row, column = divmod(int(inside[rng.integers(len(inside))]), crop.shape[1])
    return left + column + 0.5, top + row + 0.5, label


def _centre(mask: BoolArray) -> LabelledPoint:
    """Return the pixel farthest from the edge, the first point in the SAM paper's evaluation."""
    depth = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    return float(column) + 0.5, float(row) + 0.5, FOREGROUND


def _surroundings(mask: BoolArray) -> BoolArray:
    """Return the pixels outside the mask within its slightly enlarged bounding box."""
    top, left, bottom, right = _window(mask)
    margin = 6 + max(bottom - top, right - left) // 5
    near = np.zeros_like(mask)
    near[max(0, top - margin) : bottom + margin, max(0, left - margin) : right + margin] = True
    return np.asarray(near & ~mask) if (near & ~mask).any() else ~mask


def _jitter(rng: np.random.Generator) -> Array:
    """Return the errors of a hand-drawn box's sides, relative to its extent; sometimes 0."""
    return np.clip(rng.normal(0, 0.05, 4) * (rng.random() < 0.7), -0.12, 0.12)


def _box(mask: BoolArray, jitter: Array) -> list[LabelledPoint]:
    """Return the bounding box as two corners, its sides (left, top, right, bottom) moved."""
    top, left, bottom, right = _window(mask)
    sides = np.array([right - left, bottom - top, right - left, bottom - top])
    x0, y0, x1, y1 = np.array([left, top, right, bottom]) + jitter * sides
    return [(float(x0), float(y0), BOX_START), (float(x1), float(y1), BOX_END)]
