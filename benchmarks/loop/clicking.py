"""Clicks on a known object in a running server, until its mask is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from samserve.client import Client, Embedding, Mask, Prompt
from samserve.tuning.measures import mask_iou, widest_error
from samserve.tuning.prompts import LabelledPoint, sample_points
from samserve.types import BoolArray

PROMPTS = 32
"""Prompts in a call."""


@dataclass
class Attempt:
    """The clicks on one object so far, the mask that they gave, and its IoU after each click."""

    goal: BoolArray
    points: list[LabelledPoint]
    ious: list[float] = field(default_factory=list)
    mask: Mask | None = None

    def correct(self) -> None:
        """Click the centre of the widest error."""
        assert self.mask is not None
        (x, y), label = widest_error(self.mask.array, self.goal, scale=1)
        self.points.append((x, y, label))

    def prompt(self) -> Prompt:
        """Return the clicks, with the logits of the mask that they correct."""
        return Prompt(self.points, mask=None if self.mask is None else self.mask.low_res_logits)


async def click(
    client: Client, embedding: Embedding, goals: Sequence[BoolArray], iou: float, clicks: int
) -> list[Attempt]:
    """Click the centre of each object, then errors, until an IoU is reached or clicks are used."""
    rng = np.random.default_rng(0)
    attempts = [Attempt(goal, sample_points(rng, goal, "centre")) for goal in goals]
    active = attempts
    for number in range(clicks):
        if number:
            for each in active:
                each.correct()
        masks = await predicted(client, embedding, [each.prompt() for each in active])
        for each, mask in zip(active, masks, strict=True):
            each.mask = mask
            each.ious.append(float(mask_iou(mask.array, each.goal)))
        active = [each for each in active if each.ious[-1] < iou]
    return attempts


async def boxed(client: Client, embedding: Embedding, goals: Sequence[BoolArray]) -> list[float]:
    """Return the IoU of the mask for the exact box of each object."""
    rng = np.random.default_rng(0)
    prompts = []
    for goal in goals:
        (x0, y0, _), (x1, y1, _) = sample_points(rng, goal, "exact box")
        prompts.append(Prompt(box=(x0, y0, x1, y1)))
    masks = await predicted(client, embedding, prompts)
    return [float(mask_iou(mask.array, goal)) for mask, goal in zip(masks, goals, strict=True)]


async def predicted(client: Client, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Mask]:
    """Return the first mask of each prompt, with its logits."""
    found: list[Mask] = []
    for start in range(0, len(prompts), PROMPTS):
        part = prompts[start : start + PROMPTS]
        result = await client.predict(embedding, part, low_res_logits=True)
        found += [masks[0] for masks in result.results]
    return found
