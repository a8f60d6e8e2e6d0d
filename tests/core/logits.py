"""Low-res logits that resemble a decoder's, and difficult ones."""

from __future__ import annotations

import cv2
import numpy as np
from samserve.types import FloatArray, Size

SIDE = 256


def blobs(seed: int, count: int, resized: Size) -> list[FloatArray]:
    """Return wavy objects of all sizes inside the image: distance to the outline plus noise."""
    rng = np.random.default_rng(seed)
    return [_blob(rng, resized) for _ in range(count)]


def _blob(rng: np.random.Generator, resized: Size) -> FloatArray:
    y, x = np.mgrid[:SIDE, :SIDE]
    centre_y = rng.uniform(0, resized.height / 4)
    centre_x = rng.uniform(0, resized.width / 4)
    angle = np.arctan2(y - centre_y, x - centre_x)
    radius = np.exp(rng.uniform(np.log(3), np.log(110)))
    radius = radius * (1 + 0.25 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.1 * np.sin(7 * angle))
    inside = radius - np.hypot(y - centre_y, (x - centre_x) * rng.uniform(0.6, 1.6))
    noise = cv2.GaussianBlur(rng.normal(size=(SIDE, SIDE)), (0, 0), 1.5) * 2
    return np.asarray(np.clip(inside * rng.uniform(0.8, 3), -14, 14) + noise, dtype=np.float32)


def constant(value: float) -> FloatArray:
    """Return a map of one value."""
    return np.full((SIDE, SIDE), value, dtype=np.float32)


def difficult() -> dict[str, FloatArray]:
    """Return maps whose pixels lie at thresholds, at the border or on both sides of it."""
    rng = np.random.default_rng(7)
    corner = constant(-9)
    corner[0, 0] = corner[0, -1] = corner[-1, 0] = 40
    frame = constant(6)
    frame[1:-1, 1:-1] = -6
    line = constant(-20)
    line[:, 100] = 20
    return {
        "all positive": constant(8),
        "all negative": constant(-8),
        "all at level": constant(0),
        "all at upper level": constant(1),
        "all at lower level": constant(-1),
        "just above lower level": constant(float(np.nextafter(np.float32(-1), np.float32(0)))),
        "corners": corner,
        "frame": frame,
        "line": line,
        "noise": rng.normal(0, 3, (SIDE, SIDE)).astype(np.float32),
        "three levels": rng.choice([-1.0, 0.0, 1.0], (SIDE, SIDE)).astype(np.float32),
        "checkerboard": np.asarray(
            np.indices((SIDE, SIDE)).sum(axis=0) % 2 * 2 - 1, dtype=np.float32
        ),
        "huge range": (rng.normal(0, 1, (SIDE, SIDE)) ** 15 * 1e6).astype(np.float32),
    }
