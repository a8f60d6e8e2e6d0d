"""Where the pixels of the image are on the screen."""

from __future__ import annotations

from dataclasses import dataclass
from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image
from playwright.async_api import Locator, Page
from skimage.measure import label, regionprops

MARGIN, MAX_SCALE = 16, 8
"""Around a fitted image, in pixels of the window; and its largest scale."""


@dataclass
class Screen:
    """The place of the image in the window, after it was fitted into the stage."""

    page: Page
    stage: Locator
    scale: float = 1.0
    left: float = 0.0
    top: float = 0.0
    corner: tuple[float, float] = (0.0, 0.0)
    """Of the stage, in the window."""

    async def fit(self, width: float, height: float) -> None:
        """Compute where an image of this size is; every click checks this."""
        box = await self.stage.bounding_box()
        assert box is not None
        self.corner = box["x"], box["y"]
        free_width, free_height = box["width"] - 2 * MARGIN, box["height"] - 2 * MARGIN
        self.scale = min(free_width / width, free_height / height, MAX_SCALE)
        self.left = box["x"] + (box["width"] - width * self.scale) / 2
        self.top = box["y"] + (box["height"] - height * self.scale) / 2

    def place_of(self, x: float, y: float) -> tuple[float, float]:
        """Return the place of a pixel of the image, in pixels of the window."""
        return self.left + x * self.scale, self.top + y * self.scale

    def in_image(
        self, shown: npt.NDArray[np.bool_], height: int, width: int
    ) -> npt.NDArray[np.bool_]:
        """Return what the stage shows at the centre of each pixel of the image, ``[h, w]``."""
        rows = self.top - self.corner[1] + (np.arange(height) + 0.5) * self.scale
        columns = self.left - self.corner[0] + (np.arange(width) + 0.5) * self.scale
        return shown[np.ix_(rows.astype(int), columns.astype(int))]

    async def move_to(self, x: float, y: float) -> None:
        """Move the pointer to a pixel of the image."""
        await self.page.mouse.move(*self.place_of(x, y))

    async def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag with the left button between two pixels of the image."""
        await self.move_to(*start)
        await self.page.mouse.down()
        await self.page.mouse.move(*self.place_of(*end), steps=5)
        await self.page.mouse.up()


def pixels_of(png: bytes) -> npt.NDArray[np.uint8]:
    """Decode a screenshot, uint8 ``[h, w, 3]``."""
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image.convert("RGB"))


def marks_in(
    pixels: npt.NDArray[np.uint8], colour: tuple[int, int, int]
) -> list[tuple[float, float]]:
    """Return the centres of the areas that have about this colour, from left to right."""
    near = np.abs(pixels.astype(int) - colour).max(axis=2) < 60
    centres = [each.centroid for each in regionprops(label(near))]
    return sorted((x + 0.5, y + 0.5) for y, x in centres)
