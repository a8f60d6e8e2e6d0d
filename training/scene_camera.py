"""Effects of light and camera on a scene: blur, noise, colour, resolution, compression."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def photograph(rng: np.random.Generator, image: Array, strength: float) -> Array:
    """Apply the effects to float32 RGB ``[h,w,3]``, return uint8; ``strength`` scales them."""
    image = _illuminate(rng, image, strength)
    image = _colour(rng, image, strength)
    image = _blur(rng, image)
    if rng.random() < 0.6:
        sigma = rng.exponential(5) * strength
        grain = rng.standard_normal(image.shape[:2], np.float32)
        image = image + (sigma * grain)[..., None]
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    return _compress(rng, pixels) if rng.random() < 0.4 else pixels


def _illuminate(rng: np.random.Generator, image: Array, strength: float) -> Array:
    """Multiply by a smooth light field: lamps, vignettes, soft shadows."""
    scale = 0.18 if rng.random() < 0.75 else 0.45
    field = rng.standard_normal((3, 3), np.float32) * np.float32(scale * strength * rng.random())
    light = cv2.resize(field, image.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray(image * np.exp(light)[..., None], np.float32)


def _colour(rng: np.random.Generator, image: Array, strength: float) -> Array:
    contrast = 1 + strength * rng.uniform(-0.35, 0.25)
    tint = (1 + strength * rng.normal(0, 0.06, 3)).astype(np.float32)
    image = ((image - 128) * contrast + 128 + strength * rng.normal(0, 12)) * tint
    if rng.random() < 0.2:
        grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
        return np.repeat(grey[..., None], 3, axis=2)
    return np.asarray(image, np.float32)


def _blur(rng: np.random.Generator, image: Array) -> Array:
    """Blur as optics do, or by enlarging a small image, as for photos below the model's size."""
    height, width = image.shape[:2]
    choice = rng.random()
    if choice < 0.3:
        factor = rng.uniform(0.35, 0.9)
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
        return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR))
    if choice < 0.36:
        return _motion_blur(rng, image)
    if choice < 0.7:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.3)))
    return image


def _motion_blur(rng: np.random.Generator, image: Array) -> Array:
    """Blur along a line of a few pixels."""
    radius = int(rng.integers(1, 4))
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    ends = rng.integers(0, 2 * radius + 1, 2)
    cv2.line(kernel, (0, int(ends[0])), (2 * radius, int(ends[1])), 1.0)
    kernel = kernel if rng.random() < 0.5 else kernel.T.copy()
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()))


def _compress(rng: np.random.Generator, image: Array) -> Array:
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))]
    _, data = cv2.imencode(".jpg", image, quality)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))
