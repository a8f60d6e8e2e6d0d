"""The same object many times over: coins, fruit, windows, buttons, tiles, books on a shelf."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from training.scene_canvas import Painter
from training.scene_objects import SMALLEST_WINDOW, put
from training.scene_relief import emboss, shade
from training.scene_shapes import disc, plain, random_shape
from training.scene_textures import material, random_colour

Array = NDArray[Any]
Place = tuple[float, float]
"""Centre (y, x) in pixels."""


@dataclass
class Model:
    """What is repeated: coverage ``[h,w]`` and surface ``[h,w,3]``, and how copies differ."""

    alpha: Array
    surface: Array
    tint: float
    turned: bool
    resized: float


def add_group(painter: Painter) -> None:
    """Twenty copies or so, in rows, in a heap or close together."""
    arrangement = ARRANGEMENTS[int(painter.rng.choice(3, p=[0.45, 0.35, 0.2]))]
    arrangement(painter)


def _rows(painter: Painter) -> None:
    """Rows and columns with gaps."""
    rng, valid = painter.rng, painter.valid
    rows, columns = (int(v) for v in rng.integers(2, 8, 2))
    side = 0.97 * min(valid[0] / rows, valid[1] / columns) * rng.uniform(0.5, 1)
    model = _model(painter, side, turned=rng.random() < 0.6)
    for place in _lattice(painter, rows, columns, rng.uniform(0.0, 0.12)):
        _copy(painter, model, place)


def _heap(painter: Painter) -> None:
    """Anywhere, over each other."""
    rng, valid = painter.rng, painter.valid
    side = painter.size * float(np.exp(rng.uniform(np.log(0.06), np.log(0.3))))
    model = _model(painter, side, turned=True)
    for _ in range(int(min(36, rng.uniform(0.3, 1.2) * valid[0] * valid[1] / side**2)) + 2):
        _copy(painter, model, (rng.uniform(0, valid[0]), rng.uniform(0, valid[1])))


def _tiles(painter: Painter) -> None:
    """Side by side, with thin seams only: each copy has a colour of its own or none has."""
    rng, valid = painter.rng, painter.valid
    rows, columns = (int(v) for v in rng.integers(1, 8, 2))
    pitch = valid[0] / rows, valid[1] / columns
    size = [max(14, int(rng.uniform(0.86, 0.98) * one)) for one in pitch]
    alpha = np.pad(np.ones([one - 2 for one in size], np.float32), 1)
    various = rng.random() < 0.5
    for place in _lattice(painter, rows, columns, 0.0):
        if various or (place[0] < pitch[0] and place[1] < pitch[1]):
            surface = _surface(painter, alpha)
        _copy(painter, Model(alpha, surface, 6.0, False, 0.0), place)


ARRANGEMENTS: tuple[Callable[[Painter], None], ...] = (_rows, _heap, _tiles)


def _lattice(painter: Painter, rows: int, columns: int, jitter: float) -> Iterator[Place]:
    height, width = painter.valid
    for row in range(rows):
        for column in range(columns):
            y, x = painter.rng.uniform(-jitter, jitter, 2) + 0.5 + (row, column)
            yield y * height / rows, x * width / columns


def _model(painter: Painter, side: float, turned: bool) -> Model:
    rng = painter.rng
    shape = (disc, plain, random_shape)[int(rng.choice(3, p=[0.4, 0.3, 0.3]))]
    rows, columns = max(14, int(side * rng.uniform(0.75, 1))), max(14, int(side))
    alpha = shape(rng, rows, columns)
    resized = rng.uniform(0, 0.3) * (rng.random() < 0.5)
    return Model(alpha, _surface(painter, alpha), rng.uniform(0, 20), turned, resized)


def _surface(painter: Painter, alpha: Array) -> Array:
    rng = painter.rng
    colour, contrast = random_colour(rng), rng.uniform(0.1, painter.settings.texture_contrast)
    height, width = alpha.shape
    surface = material(rng, height, width, colour, contrast)
    if rng.random() < 0.5:
        surface = emboss(rng, surface, alpha)
    return shade(rng, surface, alpha) if rng.random() < 0.6 else surface


def _copy(painter: Painter, model: Model, place: Place) -> None:
    """One more, a little larger or smaller, turned, lighter or darker."""
    rng = painter.rng
    height, width = model.alpha.shape
    scale = 1 + rng.uniform(-1, 1) * model.resized
    angle = rng.uniform(0, 360) if model.turned else 0.0
    reach = int(np.hypot(height, width) * scale) + 2 if model.turned else 0
    rows, columns = max(reach, int(height * scale)), max(reach, int(width * scale))
    move = cv2.getRotationMatrix2D((width / 2, height / 2), angle, scale)
    move[:, 2] += (columns - width) / 2, (rows - height) / 2
    alpha = cv2.warpAffine(model.alpha, move, (columns, rows))
    surface = cv2.warpAffine(model.surface, move, (columns, rows), borderMode=cv2.BORDER_REPLICATE)
    surface = surface + (rng.normal(0, model.tint) + rng.normal(0, 3, 3)).astype(np.float32)
    top, left = int(place[0] - rows / 2), int(place[1] - columns / 2)
    window, piece = painter.clip(alpha, top, left)
    if min(piece.shape) < SMALLEST_WINDOW or not (piece > 0.5).any():
        return
    _, channels = painter.clip(surface, top, left)
    put(painter, window, piece, channels)
