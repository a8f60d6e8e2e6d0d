"""Images to segment: shapes on a background, each number another one."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from PIL import Image, ImageDraw

WIDTH, HEIGHT = 640, 480
_SHAPES = 14


def scene(number: int) -> bytes:
    """Draw an image of `WIDTH` x `HEIGHT` pixels, as a JPEG."""
    dice = np.random.default_rng(number)
    grain = dice.normal(128, 12, (HEIGHT, WIDTH, 3)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(grain)
    draw = ImageDraw.Draw(image)
    for _ in range(_SHAPES):
        x, y = int(dice.integers(WIDTH)), int(dice.integers(HEIGHT))
        size = dice.integers(20, 120, 2)
        box = (x, y, x + int(size[0]), y + int(size[1]))
        color = tuple(int(part) for part in dice.integers(0, 256, 3))
        (draw.ellipse if dice.random() < 0.5 else draw.rectangle)(box, fill=color)
    file = BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()
