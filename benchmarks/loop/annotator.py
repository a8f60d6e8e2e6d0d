"""A scripted annotator, who turns tasks of Label Studio with proposals into an export of it.

A proposal that is nearly an object is accepted, one that is roughly it is corrected, and an object
without one is added; other proposals are deleted.  To correct or add, the annotator clicks in the
served model; what the clicks do not reach is painted with the brush, exactly.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from samserve.client import Client
from samserve.core import run_lengths
from samserve.datasets import pixels
from samserve.datasets.label_studio import regions
from samserve.datasets.label_studio.label_config import LabelConfig
from samserve.datasets.label_studio.regions import Json, Place
from samserve.datasets.label_studio.writing import CONFIG_NAME, TASKS_NAME
from samserve.datasets.reading import open_dataset
from samserve.datasets.types import ImageRecord
from samserve.tuning.measures import mask_iou
from samserve.types import BoolArray

from benchmarks.loop import clicking
from benchmarks.loop.clicking import Attempt
from benchmarks.loop.data import LabelledImage

ACCEPTED_IOU, CORRECTED_IOU = 0.9, 0.5
"""IoU of a proposal with an object from which it is accepted, and from which it is corrected."""
RIGHT_IOU, MAX_CLICKS = 0.93, 8
"""IoU with which the annotator is content, and clicks before the brush."""


@dataclass
class Effort:
    """What the annotator has done: objects by origin, clicks, and objects that were painted."""

    objects: Counter[str] = field(default_factory=Counter)
    clicks: int = 0
    painted: int = 0

    def facts(self) -> dict[str, int]:
        """Return the counts by name."""
        return {**self.objects, "clicks": self.clicks, "painted": self.painted}


@dataclass(frozen=True)
class _Decision:
    """What is done with an object: its proposal if that is accepted, and Label Studio's origin."""

    goal: BoolArray
    proposal: BoolArray | None
    origin: str


async def review(
    client: Client, folder: Path, proposals: Path, images: Sequence[LabelledImage], effort: Effort
) -> list[Json]:
    """Return the reviewed tasks: those in *folder*, made of the data set *proposals*."""
    config = LabelConfig.parse((folder / CONFIG_NAME).read_text("utf-8"))
    control = config.outputs("image")[0]
    place = Place(control, control.labels[0])
    records = {record.file_name: record for record in open_dataset(proposals).images}
    by_name = {labelled.path.name: labelled for labelled in images}
    reviewed = []
    for task in json.loads((folder / TASKS_NAME).read_text("utf-8")):
        name = task["data"]["file_name"]
        decisions = list(_decisions(records[name], by_name[name].masks))
        masks = await _drawn(client, by_name[name], decisions, effort)
        result = [
            _region(name, number, decision, mask, place)
            for number, (decision, mask) in enumerate(zip(decisions, masks, strict=True))
        ]
        effort.objects.update(each.origin for each in decisions)
        reviewed.append({**task, "annotations": [{"id": len(reviewed) + 1, "result": result}]})
    return reviewed


def _decisions(record: ImageRecord, goals: Iterable[BoolArray]) -> Iterator[_Decision]:
    found = [each.segmentation for each in record.annotations if each.segmentation is not None]
    masks = [run_lengths.decode(pixels.to_rle(each, record.size)) for each in found]
    for goal in goals:
        ious = mask_iou(np.stack(masks), goal) if masks else np.zeros(1)
        best = int(ious.argmax())
        if ious[best] >= ACCEPTED_IOU:
            yield _Decision(goal, masks[best], "prediction")
        else:
            yield _Decision(
                goal, None, "prediction-changed" if ious[best] >= CORRECTED_IOU else "manual"
            )


async def _drawn(
    client: Client, labelled: LabelledImage, decisions: Sequence[_Decision], effort: Effort
) -> list[BoolArray]:
    """Return the final mask of each object: the proposal, that of the clicks, or a painted one."""
    embedding = await client.embed(labelled.path)
    goals = [each.goal for each in decisions if each.proposal is None]
    attempts = await clicking.click(client, embedding, goals, RIGHT_IOU, MAX_CLICKS)
    effort.clicks += sum(len(each.ious) for each in attempts)
    effort.painted += sum(each.ious[-1] < RIGHT_IOU for each in attempts)
    remaining = iter(attempts)
    return [
        _finished(next(remaining)) if each.proposal is None else each.proposal for each in decisions
    ]


def _finished(attempt: Attempt) -> BoolArray:
    if attempt.mask is None or attempt.ious[-1] < RIGHT_IOU:
        return attempt.goal
    return attempt.mask.array


def _region(name: str, number: int, decision: _Decision, mask: BoolArray, place: Place) -> Json:
    """Return a brush stroke as Label Studio exports it."""
    coco = run_lengths.encode(mask)
    region_id = regions.identifier(f"{name}:reviewed:{number}")
    region = regions.region(regions.brush(coco), coco.size, place, region_id, None)
    return {**region, "origin": decision.origin}
