"""A synthetic image of any size with known objects, painted window by window.

A pixel depends on its place only, so every window of an image shows the same scene.  Objects have
the kinds of outline and the contrast that the default model can segment (docs/model-card.md):
blobs, ellipses and rounded rectangles, at random places, some at given ones such as seams of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from samserve.core import intervals
from samserve.core.intervals import Window
from samserve.core.run_lengths import IntArray
from samserve.types import Array, Size, UInt8Array

GAP = 120
"""Pixels between objects, and between an object and the edge of the image."""
_BACKGROUND = np.array([112.0, 124.0, 96.0])
_NOISE = 512
_SHIFT = 4
_COLOURS = np.array(
    [
        *((240, 240, 240), (18, 18, 18), (225, 35, 35), (35, 45, 225)),
        *((240, 225, 45), (225, 60, 220), (45, 225, 240)),
    ]
)
"""The default model often returns objects of similar colours in a tile as one mask."""


@dataclass(frozen=True, slots=True, eq=False)
class Object:
    """An object: its outline ``[n, 2]``, x and y in image pixels, its colour, and its extent."""

    outline: Array
    colour: Array
    extent: Window

    def pixels(self, size: Size) -> IntArray:
        """Return its pixels as intervals of the image."""
        left, top, right, bottom = self.extent
        own = Size(bottom - top, right - left)
        mask = np.zeros((own.height, own.width), np.uint8)
        _fill(mask, self.outline - (left, top), 1)
        changes = np.diff(mask.T.reshape(-1).astype(np.int8), prepend=0, append=0)
        runs = np.flatnonzero(changes).reshape(-1, 2)
        return intervals.shifted(runs, own, left, top, size)


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """A scene of *size* with objects that do not touch."""

    size: Size
    objects: tuple[Object, ...]
    noise: Array

    @classmethod
    def of(
        cls,
        side: int,
        count: int,
        seed: int,
        *,
        centres: Sequence[tuple[float, float]] = (),
        sides: tuple[float, float] = (300, 620),
    ) -> Scene:
        """Return the square scene of a seed.

        *centres* are those of the first objects, *sides* the shortest and the longest of the
        longer sides of objects.
        """
        rng = np.random.default_rng(seed)
        objects: list[Object] = []
        while len(objects) < count:
            given = centres[len(objects)] if len(objects) < len(centres) else None
            centre = given or tuple(rng.uniform(0, side, 2).tolist())
            found = _object(rng, centre, rng.uniform(*sides), objects)
            if _fits(found.extent, side, objects):
                objects.append(found)
        coarse = rng.standard_normal((_NOISE // 16, _NOISE // 16, 1))
        noise = cv2.resize(np.tile(coarse, (3, 3, 1)), (3 * _NOISE, 3 * _NOISE))
        noise = 5 * noise[_NOISE : 2 * _NOISE, _NOISE : 2 * _NOISE, None]
        return cls(Size(side, side), tuple(objects), noise + rng.normal(0, 3, (_NOISE, _NOISE, 1)))

    def paint(self, window: Window) -> UInt8Array:
        """Return the pixels of a window: uint8 ``[h, w, 3]`` RGB."""
        left, top, right, bottom = window
        y, x = np.arange(top, bottom)[:, None, None], np.arange(left, right)[None, :, None]
        slow = np.sin(x / 2500 + np.array([0, 1, 2])) + np.cos(y / 3100 + np.array([1, 0, 2]))
        image = _BACKGROUND + 14 * slow
        for each in self.objects:
            if each.extent[0] < right and each.extent[2] > left:
                self._paint_object(image, window, each)
        image = image + self.noise[y[:, :, 0] % _NOISE, x[:, :, 0] % _NOISE]
        return np.clip(image, 0, 255).astype(np.uint8)

    def _paint_object(self, image: Array, window: Window, each: Object) -> None:
        left, top, right, bottom = window
        if each.extent[1] >= bottom or each.extent[3] <= top:
            return
        mask = np.zeros((bottom - top, right - left), np.uint8)
        _fill(mask, each.outline - (left, top), 1)
        image[mask > 0] = each.colour


def _fill(mask: Array, outline: Array, value: int) -> None:
    fixed = np.round(outline * 2**_SHIFT).astype(np.int32)
    cv2.fillPoly(mask, [fixed], value, cv2.LINE_8, _SHIFT)


def _fits(extent: Window, side: int, objects: Sequence[Object]) -> bool:
    left, top, right, bottom = (
        extent[0] - GAP,
        extent[1] - GAP,
        extent[2] + GAP,
        extent[3] + GAP,
    )
    return (
        min(left, top) >= 0
        and max(right, bottom) <= side
        and not any(
            each.extent[0] < right
            and each.extent[2] > left
            and each.extent[1] < bottom
            and each.extent[3] > top
            for each in objects
        )
    )


def _object(
    rng: np.random.Generator,
    centre: tuple[float, ...],
    side: float,
    others: Sequence[Object],
) -> Object:
    """Return an object with a longest side, around a centre."""
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    cosine, sine = np.cos(angle), np.sin(angle)
    kind = rng.integers(3)
    aspect = rng.uniform(0.6, 1)
    if kind == 0:
        radius = 1 + sum(
            rng.uniform(0, 0.2 / order) * np.cos(order * angle + rng.uniform(0, 6.3))
            for order in range(2, 5)
        )
        unit = np.stack([radius * cosine, radius * sine], axis=1)
    else:
        power = 1.0 if kind == 1 else 0.4
        parts = [np.sign(part) * np.abs(part) ** power for part in (cosine, sine)]
        unit = np.stack(parts, axis=1)
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    unit = unit * (1, aspect) @ rotation.T
    outline = unit * side / np.ptp(unit, axis=0).max()
    outline += centre - (outline.min(axis=0) + outline.max(axis=0)) / 2
    low = np.floor(outline.min(axis=0)).astype(int) - 1
    high = np.ceil(outline.max(axis=0)).astype(int) + 2
    extent = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    return Object(outline, _colour(rng, np.asarray(centre), others), extent)


def _centre(each: Object) -> Array:
    return np.array(each.extent).reshape(2, 2).mean(axis=0)


def _colour(rng: np.random.Generator, centre: Array, others: Sequence[Object]) -> Array:
    """Return a colour that differs from those of near objects."""
    colours = _COLOURS + rng.uniform(-12, 12, _COLOURS.shape)
    if not others:
        return np.asarray(colours[0])
    used = np.stack([each.colour for each in others])
    far = np.stack([np.linalg.norm(_centre(each) - centre) for each in others])
    distances = np.linalg.norm(colours[:, None] - used, axis=2) + far / 10
    return np.asarray(colours[distances.min(axis=1).argmax()])
