"""The canvas on which a scene is painted, with its ground truth.

Windows are (rows, columns) slices of the canvas; a window has a coverage ``[h,w]`` in 0..1 and a
surface ``[h,w,3]`` RGB in 0..255, both float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.scene_settings import SceneSettings
from training.scene_textures import near_colour, random_colour

Array = NDArray[Any]
Window = tuple[slice, slice]
OBJECT, PART, SUBPART = 0, 1, 2


class Painter:
    """A scene under construction: colours, ids of every level and the next free id."""

    def __init__(
        self,
        rng: np.random.Generator,
        base: Array,
        valid: tuple[int, int],
        settings: SceneSettings,
    ) -> None:
        self.rng, self.image, self.valid, self.settings = rng, base, valid, settings
        self.size = len(base)
        self.levels = np.zeros((3, self.size, self.size), np.int32)
        self.next_id = 1

    def take_id(self) -> int:
        """Return the next id; ids are in order of painting."""
        self.next_id += 1
        return self.next_id - 1

    def paint(
        self, window: Window, alpha: Array, surface: Array, level: int, owner: int = 0
    ) -> int:
        """Paint a surface over the window and return its id; finer levels below it are erased.

        Parts are clipped to the ``owner``, an id of the next coarser level.
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

    def clip(self, alpha: Array, top: int, left: int) -> tuple[Window, Array]:
        """Return the window and part of a coverage at (top, left) that lie on the canvas."""
        bottom, right = top + alpha.shape[0], left + alpha.shape[1]
        rows = slice(*np.clip((top, bottom), 0, self.size).tolist())
        columns = slice(*np.clip((left, right), 0, self.size).tolist())
        inner = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        return (rows, columns), alpha[inner]

    def colour_over(self, window: Window) -> Array:
        """Return a colour for something painted here, sometimes of low contrast to the canvas."""
        if self.rng.random() > self.settings.low_contrast:
            return random_colour(self.rng)
        below = self.image[window].mean((0, 1))
        return near_colour(self.rng, below, self.rng.uniform(14, 40))
