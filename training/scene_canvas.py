"""The canvas that a scene is painted on, with its ground truth.

Windows are (rows, columns) slices of the canvas; a coverage ``[h,w]`` in 0..1 and a surface
``[h,w,3]`` RGB in 0..255, both float32, lie over one.
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

    def clip(self, alpha: Array, top: int, left: int) -> tuple[Window, Array]:
        """The part of a coverage placed at (top, left) that lies on the canvas."""
        bottom, right = top + alpha.shape[0], left + alpha.shape[1]
        rows = slice(*np.clip((top, bottom), 0, self.size).tolist())
        columns = slice(*np.clip((left, right), 0, self.size).tolist())
        inner = (
            slice(rows.start - top, rows.stop - top),
            slice(columns.start - left, columns.stop - left),
        )
        return (rows, columns), alpha[inner]

    def colour_over(self, window: Window) -> Array:
        """A colour for something painted here, sometimes hard to tell from what is there."""
        if self.rng.random() > self.settings.low_contrast:
            return random_colour(self.rng)
        below = self.image[window].mean((0, 1))
        return near_colour(self.rng, below, self.rng.uniform(14, 40))
