"""The plot of a loop, and a sheet of masks before and after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from samserve.client import Client
from samserve.tuning.prompts import LabelledPoint, sample_points
from samserve.types import Array, BoolArray

from benchmarks.loop import clicking
from benchmarks.loop.data import LabelledImage

SHOWN = 3
"""Images of the sheet: one of each kind."""
COLOURS = np.array([(230, 60, 60), (60, 160, 240), (250, 190, 40), (80, 200, 90), (190, 90, 230)])
SIDE = 360


async def write_masks(client: Client, images: Sequence[LabelledImage], path: Path) -> None:
    """Write the mask of one click on each object of the first images."""
    found = {}
    for number, labelled in enumerate(images[:SHOWN]):
        embedding = await client.embed(labelled.path)
        attempts = await clicking.click(client, embedding, labelled.masks, 1.0, 1)
        found[str(number)] = [each.mask.array for each in attempts if each.mask is not None]
    np.savez_compressed(path, **{name: np.stack(masks) for name, masks in found.items()})


def write_sheet(path: Path, images: Sequence[LabelledImage], folder: Path) -> None:
    """Write a row for each image: its objects, and the masks of `write_masks` in *folder*."""
    before, after = np.load(folder / "before.npz"), np.load(folder / "after.npz")
    rows = []
    for number, labelled in enumerate(images[:SHOWN]):
        image = np.asarray(Image.open(labelled.path).convert("RGB"))
        points = [_centre(mask) for mask in labelled.masks]
        columns = (labelled.masks, before[str(number)], after[str(number)])
        rows.append(np.concatenate([_drawn(image, each, points) for each in columns], 1))
    Image.fromarray(np.concatenate(rows)).save(path)


def _centre(mask: BoolArray) -> LabelledPoint:
    return sample_points(np.random.default_rng(0), mask, "centre")[0]


def _drawn(image: Array, masks: Sequence[BoolArray], points: Sequence[LabelledPoint]) -> Array:
    shown = image.astype(np.float64)
    # The largest first, so that it hides no smaller one.
    for number in sorted(range(len(masks)), key=lambda each: -masks[each].sum()):
        mask = masks[number]
        shown[mask] = 0.45 * image[mask] + 0.55 * COLOURS[number % len(COLOURS)]
    for x, y, _ in points:
        row, column = int(y), int(x)
        shown[max(0, row - 2) : row + 3, max(0, column - 2) : column + 3] = 255
    drawn = Image.fromarray(shown.astype(np.uint8)).resize((SIDE, SIDE))
    return np.asarray(drawn)


def write_plot(path: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Write the figures before, and after each turn."""
    stages = [each["figures"] for each in results]
    names = ["before", *(f"turn {number + 1}" for number in range(len(stages) - 1))]
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    for panel, measure, title in zip(
        panels,
        ("click_iou", "box_iou", "clicks"),
        ("mean IoU, one click", "mean IoU, box", "clicks to IoU 0.9"),
        strict=True,
    ):
        for part in stages[0]:
            style = {"new": "k-o", "old": "k--s"}.get(part, "-")
            panel.plot(names, [stage[part][measure] for stage in stages], style, label=part)
        panel.set_title(title)
    panels[-1].legend()
    figure.savefig(path, dpi=110)
