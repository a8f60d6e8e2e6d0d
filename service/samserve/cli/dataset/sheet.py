"""The contact sheet: small images with their masks, names and counts."""

from __future__ import annotations

import functools
import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from samserve.cli.canvas import Canvas, Layer, Pixels
from samserve.cli.palette import PAPER, TEXT, Rgb, colour
from samserve.datasets import image_files, pixels
from samserve.datasets.types import Annotation, Category, ImageRecord
from samserve.errors import InvalidRequest
from samserve.types import Size

_SIDE = 400
_GAP = 20
_TEXT_SIZE = 19
_CAPTION = 62
_MUTED: Rgb = (150, 156, 170)
_EMPTY: Rgb = (44, 47, 57)
_MAX_LEGEND = 60


@dataclass(frozen=True, slots=True, eq=False)
class _Tile:
    image: Image.Image
    name: str
    caption: str


class Sheet:
    """Draws images one at a time; they are kept as small as they are shown.

    With several categories, colours are those of categories, else those of objects.
    ``without_image`` counts the images whose file is missing: their masks are on plain grey.
    """

    def __init__(self, categories: Sequence[Category], folder: Path | None, columns: int) -> None:
        self.without_image = 0
        self._names = {each.id: each.name for each in categories}
        self._tones = {each.id: colour(index) for index, each in enumerate(categories)}
        self._folder = folder
        self._columns = columns
        self._tiles: list[_Tile] = []
        self._counts: Counter[int | None] = Counter()

    def add(self, record: ImageRecord) -> None:
        """Draw an image.  Raises `InvalidRequest` for pixels that are not valid."""
        canvas = Canvas(self._background(record), (_SIDE, _SIDE))
        drawn = sorted(record.annotations, key=lambda each: -_area(each, record.size))
        tones = [self._tone(each, index) for index, each in enumerate(drawn)]
        step = max(1, max(record.size.height, record.size.width) // (2 * _SIDE))
        canvas.fill(
            [
                _layer(each, record.size, step, tone)
                for each, tone in zip(drawn, tones, strict=True)
                if each.segmentation is not None
            ]
        )
        scale = max(canvas.width, canvas.height) / max(record.size.height, record.size.width)
        for each, tone in zip(drawn, tones, strict=True):
            if each.segmentation is None and each.box is not None:
                left, top, width, height = (value * scale / canvas.scale for value in each.box)
                canvas.box((left, top, left + width, top + height), tone)
        counts = Counter(each.category_id for each in drawn)
        self._counts += counts
        caption = self._caption(counts)
        self._tiles.append(_Tile(Image.fromarray(canvas.pixels), record.file_name, caption))

    def draw(self) -> Image.Image:
        """Return the sheet."""
        columns = min(self._columns, max(len(self._tiles), 1))
        rows = max(1, math.ceil(len(self._tiles) / columns))
        legend = self._legend()
        width = columns * (_SIDE + _GAP) + _GAP
        lines = _wrapped(legend, width - 2 * _GAP)
        above = _GAP + (len(lines) * _LINE + _GAP if lines else 0)
        heights = [self._row_height(row, columns) for row in range(rows)]
        sheet = Image.new("RGB", (width, above + sum(heights) + _GAP), PAPER)
        draw = ImageDraw.Draw(sheet)
        for number, line in enumerate(lines):
            _draw_legend(draw, line, _GAP + (number + 0.5) * _LINE)
        for index, tile in enumerate(self._tiles):
            row, column = divmod(index, columns)
            left, top = _GAP + column * (_SIDE + _GAP), above + sum(heights[:row])
            _draw_tile(sheet, draw, tile, (left, top, heights[row]))
        if not self._tiles:
            draw.text((_GAP, above), "no images", font=_font(), fill=TEXT)
        return sheet

    def _row_height(self, row: int, columns: int) -> int:
        tiles = self._tiles[row * columns : (row + 1) * columns]
        return max((each.image.height for each in tiles), default=0) + _CAPTION + _GAP

    def _background(self, record: ImageRecord) -> Pixels:
        """Return the image, reduced, or a grey area of its shape."""
        if self._folder is not None:
            try:
                path = image_files.find(self._folder, record.file_name)
                shown, size = image_files.thumbnail(path, _SIDE)
            except InvalidRequest:
                pass
            else:
                if size == record.size:
                    return shown
        self.without_image += 1
        scale = _SIDE / max(record.size.height, record.size.width)
        sides = (record.size.height, record.size.width)
        height, width = (max(1, round(side * scale)) for side in sides)
        return np.full((height, width, 3), _EMPTY, dtype=np.uint8)

    def _tone(self, annotation: Annotation, index: int) -> Rgb:
        if len(self._tones) > 1 and annotation.category_id in self._tones:
            return self._tones[annotation.category_id]
        return colour(index)

    def _caption(self, counts: Counter[int | None]) -> str:
        total = counts.total()
        text = _plural(total, "object") if total else "no objects"
        if len(self._names) > 1:
            each = [f"{self._name(key)} {number}" for key, number in counts.most_common()]
            return ", ".join(each) or text
        return text

    def _name(self, category: int | None) -> str:
        return "no category" if category is None else self._names.get(category, f"#{category}")

    def _legend(self) -> list[tuple[str, Rgb | None]]:
        """Return the totals, and the categories that occur, the most frequent first."""
        totals = f"{_plural(len(self._tiles), 'image')}, {_plural(self._counts.total(), 'object')}"
        if len(self._names) <= 1:
            return [(totals, None)]
        found = [
            (f"{_legible(self._names[key])}  {number}", self._tones[key])
            for key, number in self._counts.most_common()
            if key in self._tones
        ]
        return [(totals, None), *found[:_MAX_LEGEND]]


_LINE = round(_TEXT_SIZE * 1.7)


def _layer(annotation: Annotation, size: Size, step: int, tone: Rgb) -> Layer:
    segmentation = annotation.segmentation
    assert segmentation is not None, "as selected by the caller"
    return Layer(lambda: pixels.sampled(segmentation, size, step), tone)


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _area(annotation: Annotation, size: Size) -> float:
    if annotation.segmentation is not None:
        return pixels.extent_of(annotation.segmentation, size).area
    return annotation.box[2] * annotation.box[3] if annotation.box else 0.0


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: _Tile, place: tuple[int, int, int]
) -> None:
    left, top, height = place
    bottom = top + height - _CAPTION - _GAP
    # Above their captions, which are in one line.
    sheet.paste(tile.image, (left, bottom - tile.image.height))
    draw.text((left, bottom + 8), _short(tile.name), font=_font(), fill=TEXT)
    caption = _short(tile.caption, at_end=True)
    draw.text((left, bottom + 8 + _LINE - 4), caption, font=_font(), fill=_MUTED)


def _short(text: str, *, at_end: bool = False) -> str:
    """Return a text that fits under an image, with dots in its middle or at its end."""
    text = _legible(text)
    kept = len(text)
    shown = text
    while _font().getlength(shown) > _SIDE:
        kept -= 1
        head = kept if at_end else kept // 2
        shown = f"{text[:head]}…{'' if at_end else text[len(text) - (kept - head) :]}"
    return shown


def _legible(text: str) -> str:
    """Return a text in the characters of Pillow's font, which are those of ASCII.

    Letters are without their accents, and other characters are question marks.
    """
    plain = (
        each for each in unicodedata.normalize("NFKD", text) if not unicodedata.combining(each)
    )
    return "".join(each if each.isascii() and each.isprintable() else "?" for each in plain)


def _wrapped(
    entries: Sequence[tuple[str, Rgb | None]], width: int
) -> list[list[tuple[str, Rgb | None]]]:
    """Return entries of the legend in lines that fit *width*."""
    lines: list[list[tuple[str, Rgb | None]]] = []
    used = width + 1.0
    for entry in entries:
        needed = _entry_width(entry[0])
        if used + needed > width:
            lines.append([])
            used = 0.0
        lines[-1].append(entry)
        used += needed
    return lines


def _draw_legend(
    draw: ImageDraw.ImageDraw, line: Sequence[tuple[str, Rgb | None]], middle: float
) -> None:
    left = float(_GAP)
    half = _TEXT_SIZE * 0.42
    for text, tone in line:
        start = left
        if tone is not None:
            corners = (left, middle - half, left + 2 * half, middle + half)
            draw.rounded_rectangle(corners, radius=_TEXT_SIZE * 0.2, fill=tone)
            start += 2.8 * half
        draw.text((start, middle), text, font=_font(), fill=TEXT, anchor="lm")
        left += _entry_width(text)


def _entry_width(text: str) -> float:
    return _font().getlength(text) + _TEXT_SIZE * 2.6


@functools.cache
def _font() -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size=_TEXT_SIZE)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow's wheels include FreeType"
    return font
