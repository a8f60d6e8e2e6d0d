"""Speed and memory of samserve with each family, beside the model's own library.

A gateway with the ONNX engine, called over gRPC on loopback, and the library in a process of its
own, both on the same number of threads, run in alternating blocks.  The models have seeded weights;
their checkpoints are exported by ``samserve export``, of which the memory is measured too.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco
from samserve.client import Client

from benchmarks.gateways import Gateway, Side, points
from benchmarks.machine import MIB, ROOT, peak, reset_peak, resident
from benchmarks.parts import Plan
from benchmarks.photographs import jpeg
from benchmarks.process import IMPORTS, ReferenceProcess, in_process
from benchmarks.references import Candidate, candidates
from benchmarks.results import Comparison, Cost, Figure, Result
from benchmarks.sam_references import overlap
from tests.oracle import photos

OPTIONS: Mapping[str, float] = {
    "pred_iou_thresh": 0.85,
    "stability_score_thresh": 0.85,
    "box_nms_thresh": 0.7,
}
"""Of AutoMask: with these, seeded weights leave tens of masks."""

ROUNDS, PREDICTIONS, AUTOMASKS = 9, 10, 3
COUNTED = {
    "pred_iou": "after_pred_iou",
    "stability_score": "after_stability",
}
"""Filters of samserve, and the counts of the generator."""


@dataclass(frozen=True)
class Prepared:
    """A model in both forms; ``export_bytes`` is the peak memory of the export, if it ran."""

    name: str
    candidate: Candidate
    checkpoint: Path
    repository: Path
    export_bytes: int


def run(plan: Plan, names: Sequence[str] = ()) -> Result:
    """Measure all models, or those named, one after the other."""
    images = {
        "640x427": jpeg(photos.coffee_427x640()),
        "1200x1800": jpeg(photos.hubble_1800x1200()),
    }
    if plan.toy:
        images = {"160x107": jpeg(photos.coffee_427x640()[::4, ::4])}
    result = Result("families")
    for name in names or candidates(toy=plan.toy):
        prepared = prepare(name, plan.folder / "families", toy=plan.toy)
        asyncio.run(_measure(prepared, plan, images, result))
    result.notes.append(f"AutoMask: 256 points, {dict(OPTIONS)}.")
    return result


def prepare(name: str, folder: Path, *, toy: bool) -> Prepared:
    """Build the checkpoint of a model and export it, unless *folder* has the checkpoint."""
    place = folder / f"{name}{'-toy' * toy}"
    candidate = candidates(toy=toy)[name]
    if not place.exists():
        place.mkdir(parents=True)
        in_process(_build, name, place, toy)
    (checkpoint,) = place.glob("checkpoint*")
    # The product may have changed since the last run: exported each time.
    shutil.rmtree(place / "models", ignore_errors=True)
    exported = export(checkpoint, name, place / "models", candidate.exporting)
    return Prepared(name, candidate, checkpoint, place / "models", exported)


def _build(name: str, folder: Path, toy: bool) -> None:
    candidates(toy=toy)[name].save(folder)


def export(checkpoint: Path, name: str, repository: Path, first: str) -> int:
    """Export by the command line, after the statement *first*; return the peak of its memory."""
    program = f"{first}\nimport sys\nfrom samserve.cli.main import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, "export", str(checkpoint)]
    flags = ["--repository", str(repository), "--name", name]
    # Not `run`: only wait4 has the memory of this child alone.
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"export of {name} failed: {output}")
    return usage.ru_maxrss << 10


async def _measure(
    prepared: Prepared, plan: Plan, images: Mapping[str, bytes], result: Result
) -> None:
    name, candidate = prepared.name, prepared.candidate
    load = partial(candidate.load, prepared.checkpoint)
    library = ("transformers.models.sam2.modeling_sam2",) * (candidate.title == "transformers")
    with (
        Gateway(plan.threads, repository=prepared.repository, model=name) as gateway,
        ReferenceProcess(load, threads=plan.threads, imports=(*IMPORTS, *library)) as reference,
    ):
        async with Client(gateway.target) as client:
            beside = Beside(Side(client, gateway.pid), reference, candidate, plan, name)
            for title, image in images.items():
                for step in (beside.embed, beside.predict, beside.automask):
                    result.comparisons.append(await step(title, image))
            figures = {
                "peak memory": (peak(gateway.pid), peak(reference.pid)),
                "memory with the model": (beside.loaded[0], beside.loaded[1]),
            }
    for figure, (ours, theirs) in figures.items():
        result.figures.append(Figure(f"{name}, samserve, {figure}", "MiB", [ours / MIB]))
        result.figures.append(Figure(f"{name}, {candidate.title}, {figure}", "MiB", [theirs / MIB]))
    exported = [prepared.export_bytes / MIB]
    result.figures.append(Figure(f"{name}, export with its parity check, peak", "MiB", exported))


class Beside:
    """Both sides, with one model."""

    def __init__(
        self, side: Side, reference: ReferenceProcess, candidate: Candidate, plan: Plan, name: str
    ) -> None:
        self.side, self.reference, self.candidate = side, reference, candidate
        self.plan, self.name = plan, name
        self.loaded = (resident(side.pid), resident(reference.pid))
        for pid in (side.pid, reference.pid):
            reset_peak(pid)

    async def embed(self, title: str, image: bytes) -> Comparison:
        """Compare from the bytes of a file to its embedding; samserve stores it too."""
        comparison = self._comparison(f"Embed, {title}")
        for _ in range(self.plan.blocks(ROUNDS)):
            embedding, cost = await self.side.cost(lambda: self.side.client.embed(image))
            await self.side.client.delete_embedding(embedding)
            comparison.ours.append(cost)
            comparison.theirs.append(self.reference.call("embed", image).cost)
        return comparison

    async def predict(self, title: str, image: bytes) -> Comparison:
        """Compare one point and one mask as run lengths, with a cached embedding."""
        comparison = self._comparison(f"Predict, {title}")
        embedding = await self.side.client.embed(image)
        self.reference.call("embed", image)
        height, width = embedding.image_size
        where, overlaps = cycle(points(width, height, 25)), []
        for _ in range(self.plan.blocks(ROUNDS)):
            ours, theirs = [], []
            for point in [next(where) for _ in range(PREDICTIONS)]:
                call = partial(self.side.predict, embedding, point, self.candidate.multimask)
                masks, cost = await self.side.cost(call)
                ours.append(cost)
                timed = self.reference.call("predict", point)
                theirs.append(timed.cost)
                overlaps.append(float(coco.iou(masks, timed.value.rles, [0])[0, 0]))
            comparison.ours.append(_mean(ours))
            comparison.theirs.append(_mean(theirs))
        comparison.agreement = f"least IoU {min(overlaps):.4f}"
        return comparison

    async def automask(self, title: str, image: bytes) -> Comparison:
        """Compare from the bytes of a file to all masks, with the encoding."""
        points_per_side = 6 if self.plan.toy else 16
        comparison = self._comparison(f"AutoMask, {title}")
        chosen: dict[str, Any] = {**OPTIONS, "points_per_side": points_per_side}
        for _ in range(self.plan.blocks(AUTOMASKS)):
            found, cost = await self.side.cost(
                lambda: self.side.client.automask_all(image, **chosen)
            )
            await self.side.client.delete_embedding(found.summary.embedding)
            timed = self.reference.call("automask", image, chosen)
            comparison.ours.append(cost)
            comparison.theirs.append(timed.cost)
        left = {each.name: each.out_count for each in found.summary.filters}
        ours = [*(left[each] for each in COUNTED), len(found.records)]
        counts = timed.value.counts
        theirs = [*(counts[each] for each in COUNTED.values()), len(timed.value.rles)]
        equal, _ = overlap([each.mask.rle for each in found.records], timed.value.rles)
        comparison.agreement = f"{_arrows(ours)} and {_arrows(theirs)} masks, {equal} equal"
        return comparison

    def _comparison(self, operation: str) -> Comparison:
        return Comparison(f"{self.name}: {operation}", self.candidate.title)


def _mean(costs: Sequence[Cost]) -> Cost:
    wall, cpu = ([getattr(each, name) for each in costs] for name in ("wall_s", "cpu_s"))
    return Cost(float(np.mean(wall)), float(np.mean(cpu)))


def _arrows(counts: Sequence[int]) -> str:
    return "→".join(str(each) for each in counts)
