"""Overlays: masks, prompts and a legend drawn on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samserve.cli.canvas import Canvas, Layer, Pixels
from samserve.cli.palette import FOREGROUND, PAPER, TEXT, WHITE, Rgb, colour
from samserve.client import AutoMaskRecord, Mask, Prompt

_SIDES = (1280, 2048)
"""Minimum and maximum long side of a single panel."""
_PANEL_SIDES = (640, 800)
"""The same for each of several panels."""
_GAP = 16
_MAX_ROWS = 8
_WIDE = 2.0


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of the legend."""

    text: str
    colour: Rgb | None = None


@dataclass(frozen=True, slots=True, eq=False)
class _Panel:
    layers: list[Layer]
    legend: list[_Entry]


def draw_prediction(
    image: Pixels, prompts: Sequence[Prompt], results: Sequence[Sequence[Mask]]
) -> Image.Image:
    """Draw the masks of every prompt: one panel for each candidate, with prompts and scores.

    *image* is uint8 ``[h, w, 3]`` RGB in the frame of the prompts.
    """
    panels = _panels(results)
    sides = _SIDES if len(panels) == 1 else _PANEL_SIDES
    drawn = []
    for panel in panels:
        canvas = Canvas(image, sides)
        canvas.fill(panel.layers)
        for number, prompt in enumerate(prompts):
            _draw_prompt(canvas, prompt, FOREGROUND if len(prompts) == 1 else colour(number))
        drawn.append(_with_legend(canvas, panel.legend))
    return _join(drawn)


def draw_masks(
    image: Pixels,
    records: Sequence[AutoMaskRecord],
    region: Sequence[float] | None = None,
) -> Image.Image:
    """Draw all masks of AutoMask, small ones on top, and its region of interest *region* (XYXY)."""
    ordered = sorted(records, key=lambda record: record.mask.area, reverse=True)
    canvas = Canvas(image, _SIDES)
    canvas.fill([Layer(each.mask.decode, colour(index)) for index, each in enumerate(ordered)])
    if region is not None:
        canvas.box(region, WHITE)
    return _with_legend(canvas, [_Entry(_count(records))])


def _panels(results: Sequence[Sequence[Mask]]) -> list[_Panel]:
    """Group the candidates: the first of every prompt, the second of every prompt, ..."""
    ranks = [
        [(number, mask) for number, mask in enumerate(masks) if mask is not None]
        for masks in zip_longest(*results)
    ]
    single = len(results) == 1
    panels = []
    for rank, masks in enumerate(ranks):
        tones = [colour(rank if single else number) for number, _ in masks]
        ordered = sorted(
            zip(masks, tones, strict=True), key=lambda pair: pair[0][1].area, reverse=True
        )
        layers = [Layer(mask.decode, tone) for (_, mask), tone in ordered]
        legend = [
            _Entry(_scores(mask, None if single else number + 1), tone)
            for (number, mask), tone in zip(masks, tones, strict=True)
        ]
        panels.append(_Panel(layers, legend))
    return panels


def _scores(mask: Mask, number: int | None) -> str:
    prompt = "" if number is None else f"prompt {number}   "
    return (
        f"{prompt}token {mask.token_index}   IoU {mask.predicted_iou:.2f}   "
        f"stability {mask.stability_score:.2f}"
    )


def _count(records: Sequence[AutoMaskRecord]) -> str:
    if not records:
        return "no masks"
    scores = [record.mask.predicted_iou for record in records]
    plural = "" if len(records) == 1 else "s"
    return f"{len(records)} mask{plural}   IoU {min(scores):.2f} to {max(scores):.2f}"


def _draw_prompt(canvas: Canvas, prompt: Prompt, tone: Rgb) -> None:
    if prompt.mask is not None and prompt.mask.dtype == np.bool_:
        canvas.outline(prompt.mask)
    if prompt.box is not None:
        canvas.box(prompt.box, tone)
    for x, y, *label in prompt.points:
        canvas.point(x, y, on_object=label != [0])


def _with_legend(canvas: Canvas, entries: list[_Entry]) -> Image.Image:
    """Add the legend below the image."""
    shown = entries
    if len(entries) > _MAX_ROWS:
        more = len(entries) - _MAX_ROWS + 1
        shown = [*entries[: _MAX_ROWS - 1], _Entry(f"and {more} more")]
    font = _font(canvas.width, shown)
    row = round(font.size * 1.6)
    strip = row * len(shown) + round(row * 0.5)
    image = Image.new("RGB", (canvas.width, canvas.height + strip), PAPER)
    image.paste(Image.fromarray(canvas.pixels), (0, 0))
    draw = ImageDraw.Draw(image)
    for index, entry in enumerate(shown):
        middle = canvas.height + row * 0.25 + row * (index + 0.5)
        _draw_entry(draw, entry, middle, font)
    return image


def _draw_entry(
    draw: ImageDraw.ImageDraw, entry: _Entry, middle: float, font: ImageFont.FreeTypeFont
) -> None:
    left = font.size * 0.7
    if entry.colour is not None:
        half = font.size * 0.42
        corners = (left, middle - half, left + 2 * half, middle + half)
        draw.rounded_rectangle(corners, radius=font.size * 0.2, fill=entry.colour)
        left += font.size * 1.4
    draw.text((left, middle), entry.text, font=font, fill=TEXT, anchor="lm")


def _font(width: int, entries: Sequence[_Entry]) -> ImageFont.FreeTypeFont:
    """Choose a font size for the image at which every line fits its width."""
    size = float(np.clip(width / 46, 15, 32))
    longest = max((_load_font(size).getlength(entry.text) for entry in entries), default=0.0)
    available = width - 3 * size
    return _load_font(size * min(1.0, available / max(longest, 1.0)))


def _load_font(size: float) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=max(6.0, size))
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels include FreeType"
    return font


def _join(panels: Sequence[Image.Image]) -> Image.Image:
    """Join panels side by side, or one below the other if they are wide."""
    if len(panels) == 1:
        return panels[0]
    width, height = (max(panel.size[axis] for panel in panels) for axis in (0, 1))
    down = width > _WIDE * height
    step = (0, height + _GAP) if down else (width + _GAP, 0)
    last = len(panels) - 1
    joined = Image.new("RGB", (width + last * step[0], height + last * step[1]), PAPER)
    for index, panel in enumerate(panels):
        joined.paste(panel, (index * step[0], index * step[1]))
    return joined
