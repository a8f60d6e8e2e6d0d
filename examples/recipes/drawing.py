"""What the recipes share: the options of their commands, and masks drawn on an image."""

from __future__ import annotations

import argparse
import colorsys
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageOps

Mask = npt.NDArray[np.bool_]


def arguments(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with what every recipe takes: an image, an output and a server."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("out", type=Path, help="the image to write, such as out.png")
    parser.add_argument("--server", default="127.0.0.1:50051", help="host:port")
    return parser


def opened(path: Path) -> Image.Image:
    """Return the image as it is displayed: coordinates of samserve are those after EXIF."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")


def with_masks(image: Image.Image, masks: Sequence[Mask]) -> Image.Image:
    """Draw masks, the first on top, each in a colour of its own with its outline."""
    drawn = image.copy()
    for number, mask in reversed(list(enumerate(masks))):
        # Steps of the golden ratio keep the hues of neighbours apart.
        red, green, blue = colorsys.hsv_to_rgb((0.55 + number * 0.618) % 1, 0.75, 1)
        colour = (int(red * 255), int(green * 255), int(blue * 255))
        area = Image.fromarray(mask)
        drawn.paste(colour, mask=area.convert("L").point(lambda value: value and 110))
        inner = area.convert("L").filter(ImageFilter.MinFilter(3))
        drawn.paste(colour, mask=Image.fromarray(mask & (np.asarray(inner) == 0)))
    return drawn


def with_points(image: Image.Image, points: Iterable[tuple[float, float, int]]) -> Image.Image:
    """Draw point prompts: green on the object, red on the background."""
    drawn = image.copy()
    draw = ImageDraw.Draw(drawn)
    for x, y, label in points:
        draw.ellipse(
            (x - 5, y - 5, x + 5, y + 5), "lime" if label else "red", outline="white", width=2
        )
    return drawn


def side_by_side(images: Sequence[Image.Image]) -> Image.Image:
    """Join images of the same height."""
    width = sum(image.width for image in images)
    joined = Image.new("RGB", (width + 4 * (len(images) - 1), images[0].height), "white")
    left = 0
    for image in images:
        joined.paste(image, (left, 0))
        left += image.width + 4
    return joined
