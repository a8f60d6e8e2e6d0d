"""Drawing on an image at display size; positions are pixels of the original image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from samserve.cli.palette import BACKGROUND, FOREGROUND, INK, WHITE, Rgb

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_FILL = 0.48
# Positions are passed to OpenCV in units of 1/16 pixel.
_SHIFT = 4


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """A mask and its colour; *decode* returns the mask, bool ``[h, w]``, when it is drawn.

    Many decoded masks of a large image would not fit in memory at once.
    """

    decode: Callable[[], Mask]
    colour: Rgb


class Canvas:
    """Draws on a copy of uint8 ``[h, w, 3]`` RGB, scaled so that its long side is in *sides*."""

    def __init__(self, image: Pixels, sides: tuple[int, int]) -> None:
        height, width = image.shape[:2]
        longest = max(height, width)
        self.scale = min(max(longest, sides[0]), sides[1]) / longest
        self.width = max(1, round(width * self.scale))
        self.height = max(1, round(height * self.scale))
        smaller = self.scale < 1
        self._resampling = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        self.pixels = _resized(
            image, self.width, self.height, cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
        )
        self._line = max(2, round(max(self.width, self.height) / 600))

    def fill(self, layers: Sequence[Layer]) -> None:
        """Tint masks; where they overlap, only the last is drawn, so that colours do not mix."""
        owner = np.zeros((self.height, self.width), dtype=np.int32)
        edges = []
        for number, layer in enumerate(layers, start=1):
            shape = self._display(layer.decode())
            owner[shape != 0] = number
            edges.append(_edges(shape))
        colours = np.array([(0, 0, 0), *(layer.colour for layer in layers)], dtype=np.float32)
        tinted = self.pixels * (1 - _FILL) + colours[owner] * _FILL
        self.pixels = np.where(owner[..., None] > 0, tinted, self.pixels).astype(np.uint8)
        for edge, layer in zip(edges, layers, strict=True):
            self._trace(edge, layer.colour)

    def outline(self, mask: Mask) -> None:
        """Draw the edge of a mask prompt."""
        self._trace(_edges(self._display(mask)), WHITE)

    def point(self, x: float, y: float, *, on_object: bool) -> None:
        """Draw a point prompt: green with a plus on the object, red with a minus off it."""
        radius = float(np.clip(0.012 * max(self.width, self.height), 7, 18))
        centre = self._position(x, y)
        self._disc(centre, radius * 1.3, INK)
        self._disc(centre, radius * 1.2, WHITE)
        self._disc(centre, radius, FOREGROUND if on_object else BACKGROUND)
        arm, thickness = radius * 0.55, max(2, round(radius * 0.3))
        self._stroke(centre, (arm, 0), thickness)
        if on_object:
            self._stroke(centre, (0, arm), thickness)

    def box(self, corners: Sequence[float], colour: Rgb) -> None:
        """Draw a box, XYXY."""
        first, second = self._position(*corners[:2]), self._position(*corners[2:])
        for tone, extra in ((INK, 4), (WHITE, 2), (colour, 0)):
            cv2.rectangle(
                self.pixels,
                _fixed(first),
                _fixed(second),
                tone,
                self._line + extra,
                cv2.LINE_AA,
                _SHIFT,
            )

    def _display(self, mask: Mask) -> Pixels:
        """Scale a mask to display size: uint8, nonzero inside the mask."""
        # Masks are decoded column by column: the transposed array needs no copy.
        columns = np.ascontiguousarray(mask.T).view(np.uint8) * np.uint8(255)
        scaled = _resized(columns, self.height, self.width, self._resampling)
        if self.scale > 1:
            # Rounds the corners of enlarged pixels, which are not corners of the object.
            scaled = np.asarray(cv2.GaussianBlur(scaled, (0, 0), self.scale / 2), np.uint8)
        return np.ascontiguousarray(scaled.T >= 128).view(np.uint8)

    def _trace(self, edges: Sequence[npt.NDArray[np.int32]], colour: Rgb) -> None:
        cv2.drawContours(self.pixels, edges, -1, INK, self._line + 2, cv2.LINE_AA)
        cv2.drawContours(self.pixels, edges, -1, colour, self._line, cv2.LINE_AA)

    def _position(self, x: float, y: float) -> tuple[float, float]:
        """Convert continuous image pixels to OpenCV's, whose pixels are centred on integers."""
        return (x * self.scale - 0.5, y * self.scale - 0.5)

    def _disc(self, centre: tuple[float, float], radius: float, colour: Rgb) -> None:
        fixed = round(radius * (1 << _SHIFT))
        cv2.circle(self.pixels, _fixed(centre), fixed, colour, cv2.FILLED, cv2.LINE_AA, _SHIFT)

    def _stroke(
        self, centre: tuple[float, float], arm: tuple[float, float], thickness: int
    ) -> None:
        start = _fixed((centre[0] - arm[0], centre[1] - arm[1]))
        end = _fixed((centre[0] + arm[0], centre[1] + arm[1]))
        cv2.line(self.pixels, start, end, WHITE, thickness, cv2.LINE_AA, _SHIFT)


def _fixed(position: tuple[float, float]) -> tuple[int, int]:
    return (round(position[0] * (1 << _SHIFT)), round(position[1] * (1 << _SHIFT)))


def _edges(shape: Pixels) -> list[npt.NDArray[np.int32]]:
    edges, _ = cv2.findContours(shape, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return [np.asarray(edge, np.int32) for edge in edges]


def _resized(pixels: Pixels, width: int, height: int, resampling: int) -> Pixels:
    return np.asarray(cv2.resize(pixels, (width, height), interpolation=resampling), np.uint8)
