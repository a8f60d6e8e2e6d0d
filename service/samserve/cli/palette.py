"""Distinguishable colours for masks."""

from __future__ import annotations

import colorsys

Rgb = tuple[int, int, int]

WHITE: Rgb = (255, 255, 255)
INK: Rgb = (16, 18, 24)
PAPER: Rgb = (24, 26, 33)
TEXT: Rgb = (236, 238, 243)
FOREGROUND: Rgb = (34, 197, 94)
BACKGROUND: Rgb = (239, 68, 68)

_FIXED: tuple[Rgb, ...] = (
    (45, 140, 255),
    (255, 140, 26),
    (214, 70, 226),
    (250, 204, 21),
    (20, 200, 190),
    (255, 77, 109),
    (139, 92, 246),
    (132, 204, 22),
)
_GOLDEN_RATIO = 0.618034
_TONES = ((0.62, 1.0), (0.85, 0.92), (0.45, 0.98))


def colour(index: int) -> Rgb:
    """Return the colour of mask *index*, from 0; the first eight are fixed.

    Each further one rotates the hue by the golden angle, which keeps consecutive hues far apart.
    """
    if index < len(_FIXED):
        return _FIXED[index]
    saturation, value = _TONES[index % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb(index * _GOLDEN_RATIO % 1.0, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))
