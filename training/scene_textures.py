"""Colours and textures of synthetic scenes. All images are float32 ``[h,w,3]`` RGB in 0..255."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Texture = Callable[[np.random.Generator, int, int, Array, Array], Array]


def random_colour(rng: np.random.Generator) -> Array:
    """Return a colour ``[3]``; low saturations are more frequent, as in photos."""
    hue, value = rng.uniform(0, 6), rng.uniform(0.06, 0.98)
    saturation = rng.beta(1.1, 2.4)
    wheel = np.clip(np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.asarray(255 * value * (1 - saturation * (1 - wheel)), np.float32)


def near_colour(rng: np.random.Generator, colour: Array, distance: float) -> Array:
    """Return a colour at about ``distance`` from another one, in 0..255 units."""
    direction = rng.normal(0, 0.4, 3) + rng.choice([-1.0, 1.0])
    return np.asarray(np.clip(colour + distance * direction, 0, 255), np.float32)


def noise(rng: np.random.Generator, height: int, width: int, coarse: float, decay: float) -> Array:
    """Return multi-octave noise ``[h,w]`` float32, mean about 0 and deviation about 1.

    ``coarse`` is the largest feature in pixels; ``decay`` the amplitude ratio between octaves.
    """
    total = np.zeros((height, width), np.float32)
    amplitude, power, feature = 1.0, 0.0, coarse
    for _ in range(5):
        rows, columns = int(height / feature) + 2, int(width / feature) + 2
        grid = rng.standard_normal((rows, columns), np.float32)
        total += amplitude * cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        power += amplitude**2
        amplitude, feature = amplitude * decay, feature / 2
        if feature < 1:
            break
    return total / np.float32(power**0.5)


def _blend(first: Array, second: Array, weight: Array) -> Array:
    return np.asarray(first + (second - first) * weight[..., None], np.float32)


def _rotated(rng: np.random.Generator, height: int, width: int) -> tuple[Array, Array]:
    """Return pixel coordinates in a randomly rotated and slightly bent frame."""
    angle, bend = rng.uniform(0, np.pi), rng.uniform(0, 8) * (rng.random() < 0.4)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    along = x * np.cos(angle) + y * np.sin(angle)
    across = -x * np.sin(angle) + y * np.cos(angle)
    across += bend * np.sin(along / rng.uniform(15, 60))
    return along.astype(np.float32), across.astype(np.float32)


def solid(rng: np.random.Generator, height: int, width: int, first: Array, second: Array) -> Array:
    """Return one colour with barely visible variation."""
    weight = rng.uniform(0, 0.12) * noise(rng, height, width, rng.uniform(30, 200), 0.5)
    return _blend(first, second, weight)


def gradient(
    rng: np.random.Generator, height: int, width: int, first: Array, second: Array
) -> Array:
    """Return a linear gradient between two colours."""
    along, _ = _rotated(rng, height, width)
    low, high = float(along.min()), float(along.max())
    return _blend(first, second, (along - low) / (high - low + 1))


def stripes(
    rng: np.random.Generator, height: int, width: int, first: Array, second: Array
) -> Array:
    """Return parallel bands, sharp or soft, sometimes bent."""
    _, across = _rotated(rng, height, width)
    wave = np.sin(across * (2 * np.pi / rng.uniform(6, 48)))
    return _blend(first, second, np.clip(wave * rng.uniform(0.7, 6) + rng.uniform(0, 1), 0, 1))


def checks(rng: np.random.Generator, height: int, width: int, first: Array, second: Array) -> Array:
    """Return a checkerboard or weave."""
    along, across = _rotated(rng, height, width)
    period = 2 * np.pi / rng.uniform(8, 50)
    wave = np.sin(along * period) * np.sin(across * period * rng.uniform(0.5, 2))
    return _blend(first, second, np.clip(wave * rng.uniform(1, 8) + 0.5, 0, 1))


def clouds(rng: np.random.Generator, height: int, width: int, first: Array, second: Array) -> Array:
    """Return soft multi-octave noise: foliage, stone, fabric."""
    field = noise(rng, height, width, float(np.exp(rng.uniform(1.5, 5))), rng.uniform(0.4, 0.95))
    return _blend(first, second, np.clip(0.5 + field * rng.uniform(0.2, 1.2), -0.2, 1.2))


def fibres(rng: np.random.Generator, height: int, width: int, first: Array, second: Array) -> Array:
    """Return stretched noise: fur, wood, brushed metal."""
    stretch = int(rng.integers(3, 14))
    field = noise(rng, height // stretch + 2, width, rng.uniform(2, 10), 0.8)
    field = cv2.resize(field, (width, height), interpolation=cv2.INTER_LINEAR)
    return _blend(first, second, np.clip(0.5 + 0.6 * field, 0, 1))


def speckles(
    rng: np.random.Generator, height: int, width: int, first: Array, second: Array
) -> Array:
    """Return blotches with sharp borders: pebbles, leaves, print."""
    field = noise(rng, height, width, rng.uniform(4, 30), 0.4)
    return _blend(first, second, np.clip((field - rng.uniform(-0.5, 1)) * 4, 0, 1))


TEXTURES: tuple[Texture, ...] = (
    solid, gradient, stripes, checks, clouds, fibres, speckles,
)  # fmt: skip
WEIGHTS = np.array([0.34, 0.18, 0.05, 0.03, 0.24, 0.10, 0.06])


def material(
    rng: np.random.Generator, height: int, width: int, base: Array, contrast: float
) -> Array:
    """Return a surface around ``base``: a texture of two near colours, with fine grain."""
    second = near_colour(rng, base, contrast * float(rng.uniform(5, 110)))
    texture = TEXTURES[int(rng.choice(len(TEXTURES), p=WEIGHTS))]
    surface = texture(rng, height, width, base, second)
    if rng.random() < 0.4:
        grain = noise(rng, height, width, rng.uniform(2, 12), 0.8)
        surface = surface + (grain * rng.uniform(1, 10))[..., None]
    return surface.astype(np.float32, copy=False)
