"""Synthetic images to segment: shapes on a noisy background, different for each number."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
_SHAPES = 14


def scene(number: int) -> bytes:
    """Return an image of `WIDTH` x `HEIGHT` pixels as a JPEG."""
    rng = np.random.default_rng(number)
    noise = rng.normal(128, 12, (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noise)
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y = int(rng.integers(WIDTH)), int(rng.integers(HEIGHT))
        size = rng.integers(20, 120, 2)
        box = (x, y, x + int(size[0]), y + int(size[1]))
        color = tuple(int(part) for part in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)(box, fill=color)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
