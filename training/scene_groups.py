"""Groups of copies of an object: coins, fruit, windows, buttons, tiles, books on a shelf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_canvas import Painter
from training.scene_objects import MIN_WINDOW, paint_object
from training.scene_relief import emboss, shade
from training.scene_shapes import disc, plain, random_shape
from training.scene_textures import material, random_colour

Array = NDArray[Any]
Position = tuple[float, float]
"""Centre (y, x) in pixels."""


@dataclass
class Template:
    """The repeated object: coverage ``[h,w]`` and surface ``[h,w,3]``, and how copies differ."""

    alpha: Array
    surface: Array
    tint: float
    rotated: bool
    size_variation: float


def add_group(painter: Painter) -> None:
    """Paint about twenty copies, in rows, in a heap or as tiles."""
    arrangement = ARRANGEMENTS[int(painter.rng.choice(3, p=[0.45, 0.35, 0.2]))]
    arrangement(painter)


def _rows(painter: Painter) -> None:
    """Paint rows and columns with gaps."""
    rng, valid = painter.rng, painter.valid
    rows, columns = (int(v) for v in rng.integers(2, 8, 2))
    side = 0.97 * min(valid[0] / rows, valid[1] / columns) * rng.uniform(0.5, 1)
    template = _template(painter, side, rotated=rng.random() < 0.6)
    for position in _lattice(painter, rows, columns, rng.uniform(0.0, 0.12)):
        _copy(painter, template, position)


def _heap(painter: Painter) -> None:
    """Paint copies at random positions, overlapping."""
    rng, valid = painter.rng, painter.valid
    side = painter.size * float(np.exp(rng.uniform(np.log(0.06), np.log(0.3))))
    template = _template(painter, side, rotated=True)
    for _ in range(int(min(36, rng.uniform(0.3, 1.2) * valid[0] * valid[1] / side**2)) + 2):
        _copy(painter, template, (rng.uniform(0, valid[0]), rng.uniform(0, valid[1])))


def _tiles(painter: Painter) -> None:
    """Paint adjacent tiles with thin seams, either all of one surface or each of another."""
    rng, valid = painter.rng, painter.valid
    rows, columns = (int(v) for v in rng.integers(1, 8, 2))
    pitch = valid[0] / rows, valid[1] / columns
    size = [max(14, int(rng.uniform(0.86, 0.98) * length)) for length in pitch]
    alpha = np.pad(np.ones([length - 2 for length in size], np.float32), 1)
    various = rng.random() < 0.5
    for position in _lattice(painter, rows, columns, 0.0):
        if various or (position[0] < pitch[0] and position[1] < pitch[1]):
            surface = _surface(painter, alpha)
        _copy(painter, Template(alpha, surface, 6.0, False, 0.0), position)


ARRANGEMENTS: tuple[Callable[[Painter], None], ...] = (_rows, _heap, _tiles)


def _lattice(painter: Painter, rows: int, columns: int, jitter: float) -> Iterator[Position]:
    height, width = painter.valid
    for row in range(rows):
        for column in range(columns):
            y, x = painter.rng.uniform(-jitter, jitter, 2) + 0.5 + (row, column)
            yield y * height / rows, x * width / columns


def _template(painter: Painter, side: float, rotated: bool) -> Template:
    rng = painter.rng
    shape = (disc, plain, random_shape)[int(rng.choice(3, p=[0.4, 0.3, 0.3]))]
    rows, columns = max(14, int(side * rng.uniform(0.75, 1))), max(14, int(side))
    alpha = shape(rng, rows, columns)
    size_variation = rng.uniform(0, 0.3) * (rng.random() < 0.5)
    return Template(alpha, _surface(painter, alpha), rng.uniform(0, 20), rotated, size_variation)


def _surface(painter: Painter, alpha: Array) -> Array:
    rng = painter.rng
    colour, contrast = random_colour(rng), rng.uniform(0.1, painter.settings.texture_contrast)
    height, width = alpha.shape
    surface = material(rng, height, width, colour, contrast)
    if rng.random() < 0.5:
        surface = emboss(rng, surface, alpha)
    return shade(rng, surface, alpha) if rng.random() < 0.6 else surface


def _copy(painter: Painter, template: Template, position: Position) -> None:
    """Paint one copy with slightly different size, rotation and brightness."""
    rng = painter.rng
    height, width = template.alpha.shape
    scale = 1 + rng.uniform(-1, 1) * template.size_variation
    angle = rng.uniform(0, 360) if template.rotated else 0.0
    diagonal = int(np.hypot(height, width) * scale) + 2 if template.rotated else 0
    rows, columns = max(diagonal, int(height * scale)), max(diagonal, int(width * scale))
    move = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    move[:, 2] += (columns - width) / 2, (rows - height) / 2
    alpha = cv2.warpAffine(template.alpha, move, (columns, rows))
    surface = cv2.warpAffine(
        template.surface, move, (columns, rows), borderMode=cv2.BORDER_REPLICATE
    )
    surface = surface + (rng.normal(0, template.tint) + rng.normal(0, 3, 3)).astype(np.float32)
    top, left = int(position[0] - rows / 2), int(position[1] - columns / 2)
    window, piece = painter.clip(alpha, top, left)
    if min(piece.shape) < MIN_WINDOW or not (piece > 0.5).any():
        return
    _, channels = painter.clip(surface, top, left)
    paint_object(painter, window, piece, channels)
