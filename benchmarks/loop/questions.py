"""What a served model is measured by before and after: one click, a box, and clicks to 0.9."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from samserve.client import Client
from samserve.tuning.evaluation import GOOD_IOU, MAX_CLICKS, Figures

from benchmarks.loop import clicking
from benchmarks.loop.data import LabelledImage

MAX_OBJECTS = 16


@dataclass(frozen=True)
class Answers:
    """IoU of one click and of a box, and clicks to `GOOD_IOU`, of an object on an image."""

    image: str
    kind: str
    click: float
    box: float
    clicks: int


async def measure(client: Client, images: Sequence[LabelledImage]) -> list[Answers]:
    """Measure the served model on up to `MAX_OBJECTS` objects of each image.

    IoUs are those of the masks in the pixels of the image.
    """
    found = []
    for labelled in images:
        embedding = await client.embed(labelled.path)
        rng = np.random.default_rng(len(labelled.masks))
        chosen = rng.permutation(len(labelled.masks))[:MAX_OBJECTS]
        goals = [labelled.masks[index] for index in chosen]
        boxes = await clicking.boxed(client, embedding, goals)
        attempts = await clicking.click(client, embedding, goals, GOOD_IOU, MAX_CLICKS)
        for box, attempt in zip(boxes, attempts, strict=True):
            found.append(
                Answers(labelled.path.name, labelled.kind, attempt.ious[0], box, len(attempt.ious))
            )
    return found


def figures(answers: Sequence[Answers], kind: str | None = None) -> Figures:
    """Return the means over the objects, or over those of a kind."""
    chosen = [each for each in answers if kind in (None, each.kind)]
    columns = ([getattr(each, name) for each in chosen] for name in ("click", "box", "clicks"))
    images = len({each.image for each in chosen})
    return Figures(images, len(chosen), *(float(np.mean(column)) for column in columns))
