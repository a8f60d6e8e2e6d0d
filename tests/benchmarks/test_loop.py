"""The scripted annotator of the loop: what it exports is read as what it decided."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from samserve.client import Client
from samserve.core import run_lengths
from samserve.datasets.label_studio import format as label_studio
from samserve.tuning.examples import WEIGHTS, Example, read_examples
from samserve.tuning.measures import mask_iou

from benchmarks.loop import data, service
from benchmarks.loop.annotator import ACCEPTED_IOU, MAX_CLICKS, RIGHT_IOU, Effort, review
from benchmarks.loop.data import LabelledImage

SCRIPT = ("--points-per-side", "8", "--pred-iou-thresh", "0.7", "--stability-score-thresh", "0.8")


@pytest.mark.slow
def test_reviewed_objects_are_read_with_their_origins(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    images = data.others(photos, seed=5, indices=range(3))
    effort = Effort()

    with service.served(service.copied(tmp_path / "repository")) as server:
        remote = ("--out", tmp_path / "proposals", "--server", server.address)
        service.command("annotate", photos, *remote, *SCRIPT)
        tasks = ("--to", "label-studio", "--out", tmp_path / "tasks")
        service.command("dataset", "convert", tmp_path / "proposals", *tasks)
        reviewed = asyncio.run(_reviewed(server.address, tmp_path, images, effort))

    file = tmp_path / "reviewed.json"
    file.write_text(json.dumps(reviewed))
    examples = read_examples(label_studio.FORMAT.read(file, photos).images, photos)
    found = {example.path.name: example for example in examples}
    for labelled in images:
        _check(labelled, found[labelled.path.name])
    by_person = sum(effort.objects[origin] for origin in ("prediction-changed", "manual"))
    assert by_person > 0
    assert by_person <= effort.clicks <= MAX_CLICKS * by_person
    weights = [target.weight for example in examples for target in example.targets]
    assert weights.count(WEIGHTS["accepted"]) == effort.objects["prediction"]
    assert weights.count(WEIGHTS["corrected"]) == by_person


async def _reviewed(
    address: str, folder: Path, images: list[LabelledImage], effort: Effort
) -> list[dict[str, object]]:
    async with Client(address) as client:
        return await review(client, folder / "tasks", folder / "proposals", images, effort)


def _check(labelled: LabelledImage, example: Example) -> None:
    """Every object has a mask that is as good as the annotator demands."""
    assert len(example.targets) == len(labelled.masks)
    worst = min(ACCEPTED_IOU, RIGHT_IOU)
    for goal, target in zip(labelled.masks, example.targets, strict=True):
        assert mask_iou(run_lengths.decode(target.mask), goal) >= worst
