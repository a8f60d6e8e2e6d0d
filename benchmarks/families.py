"""Speed and memory of samserve with each family, beside the model's own library.

``python -m benchmarks.families [--models sam2.1_hiera_tiny,edgetam,mobile_sam]``

A gateway with the ONNX engine, called over gRPC on loopback, and the library in a process of its
own, both on the same number of threads, run in alternating blocks.  The models have seeded weights;
their checkpoints are exported by ``samserve export``, of which time and memory are measured too.
A ratio is samserve's time divided by the library's: below 1, samserve is faster.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from pycocotools import mask as coco
from samserve.client import Client, Prompt

from benchmarks.common import cpu_s, options
from benchmarks.references import ReferenceProcess, Timed, build, candidates
from harness.gateway import GatewayServer
from tests.oracle import photos

ROOT = Path(__file__).parents[1]
MIB = 1 << 20
OPTIONS: Mapping[str, float] = {
    "pred_iou_thresh": 0.85,
    "stability_score_thresh": 0.85,
    "box_nms_thresh": 0.7,
}
"""Of AutoMask: with these, seeded weights leave tens of masks."""

LIBRARIES = ("torch", "transformers", "onnxruntime", "numpy")


@dataclass(frozen=True)
class Plan:
    """What is measured: rounds of each operation, calls of Predict a round, points of AutoMask."""

    rounds: int
    predictions: int
    automask_rounds: int
    points_per_side: int
    images: Mapping[str, bytes]


@dataclass(frozen=True)
class Cost:
    """One block on one side: wall-clock and CPU seconds of a call."""

    wall_s: float
    cpu_s: float


@dataclass
class Comparison:
    """An operation on both sides, block by block, and how far the results agree."""

    operation: str
    ours: list[Cost] = field(default_factory=list)
    theirs: list[Cost] = field(default_factory=list)
    agreement: str = ""

    def row(self) -> str:
        """Return a row of the table: medians, their ratio, quartiles of the blocks' ratios."""
        wall, other = (np.array([each.wall_s for each in side]) for side in self._sides())
        cpu, other_cpu = (np.median([each.cpu_s for each in side]) for side in self._sides())
        low, high = np.percentile(wall / other, (25, 75))
        median, other_median = np.median(wall), np.median(other)
        return (
            f"| {self.operation} | {_ms(median)} | {_ms(other_median)} "
            f"| **{median / other_median:.2f}** ({low:.2f}-{high:.2f}) "
            f"| {cpu / other_cpu:.2f} | {self.agreement} |"
        )

    def _sides(self) -> tuple[list[Cost], list[Cost]]:
        return self.ours, self.theirs


@dataclass(frozen=True)
class Exported:
    """An export: seconds, peak memory and bytes on disk of checkpoint and model."""

    seconds: float
    peak_bytes: int
    checkpoint_bytes: int
    model_bytes: int

    def text(self) -> str:
        """Return a sentence."""
        return (
            f"Export: {self.seconds:.0f} s, peak {self.peak_bytes / MIB:.0f} MiB; checkpoint "
            f"{self.checkpoint_bytes / MIB:.1f} MiB, model {self.model_bytes / MIB:.1f} MiB."
        )


@dataclass
class Report:
    """The results of one model; memory in bytes, of samserve and of the library."""

    model: str
    title: str
    exported: Exported | None
    comparisons: list[Comparison] = field(default_factory=list)
    memory: dict[str, tuple[int, int]] = field(default_factory=dict)

    def text(self) -> str:
        """Return Markdown tables."""
        memory = self.memory.items()
        lines = [
            f"### {self.model}, beside {self.title}",
            "",
            "| Operation | samserve ms | library ms | ratio (quartiles) | CPU ratio | result |",
            "|---|---|---|---|---|---|",
            *(each.row() for each in self.comparisons),
            "",
            "| Memory, MiB | samserve | library |",
            "|---|---|---|",
            *(f"| {name} | {a / MIB:.0f} | {b / MIB:.0f} |" for name, (a, b) in memory),
            *([] if self.exported is None else ["", self.exported.text()]),
        ]
        return "\n".join(lines)


@dataclass(frozen=True)
class Bench:
    """Both sides, with one model."""

    client: Client
    gateway_pid: int
    reference: ReferenceProcess
    multimask: Any
    plan: Plan

    async def compare_embed(self, name: str, image: bytes) -> Comparison:
        """Compare from the bytes of a file to its embedding; samserve stores it too."""
        comparison = Comparison(f"Embed, {name}")
        for _ in range(self.plan.rounds):
            embedding, cost = await self._cost(lambda: self.client.embed(image))
            comparison.ours.append(cost)
            await self.client.delete_embedding(embedding)
            comparison.theirs.append(self._reference_cost("embed", image)[1])
        return comparison

    async def compare_predict(self, name: str, image: bytes) -> Comparison:
        """Compare one point and one mask as run lengths, with a cached embedding."""
        comparison, plan = Comparison(f"Predict, {name}"), self.plan
        embedding = await self.client.embed(image)
        self.reference.call("embed", image)
        points, overlaps = cycle(_points(*embedding.image_size)), []
        for _ in range(plan.rounds):
            block = [next(points) for _ in range(plan.predictions)]
            ours, cost = await self._cost(lambda block=block: self._predict(embedding, block))
            comparison.ours.append(_divided(cost, len(block)))
            calls = [self._reference_cost("predict", point) for point in block]
            walls = [each.wall_s for _, each in calls]
            cpus = [each.cpu_s for _, each in calls]
            comparison.theirs.append(Cost(float(np.mean(walls)), float(np.mean(cpus))))
            overlaps += [
                _iou(mask, result.masks.rles[0])
                for mask, (result, _) in zip(ours, calls, strict=True)
            ]
        comparison.agreement = f"IoU at least {min(overlaps):.4f}"
        return comparison

    async def compare_automask(self, name: str, image: bytes) -> Comparison:
        """Compare from the bytes of a file to all masks, with the encoding."""
        side = self.plan.points_per_side
        comparison = Comparison(f"AutoMask, {side**2} points, {name}")
        chosen = {**OPTIONS, "points_per_side": side}
        for _ in range(self.plan.automask_rounds):
            result, cost = await self._cost(
                lambda: self.client.automask_all(image, **chosen)  # type: ignore[arg-type]
            )
            comparison.ours.append(cost)
            await self.client.delete_embedding(result.summary.embedding)
            timed, cost = self._reference_cost("automask", image, chosen)
            comparison.theirs.append(cost)
        assert timed.masks is not None
        steps = {each.name: each.out_count for each in result.summary.filters}
        ours = (steps["pred_iou"], steps["stability_score"], len(result.records))
        names = ("after_pred_iou", "after_stability", "after_small_regions")
        theirs = tuple(timed.masks.counts[each] for each in names)
        matched = _matched([each.mask.rle for each in result.records], timed.masks.rles)
        comparison.agreement = (
            f"{_arrows(ours)} and {_arrows(theirs)} masks, median IoU {matched:.4f}"
        )
        return comparison

    async def _predict(
        self, embedding: Any, points: Sequence[tuple[float, float]]
    ) -> list[Mapping[str, Any]]:
        masks = []
        for point in points:
            prediction = await self.client.predict(
                embedding, [Prompt(points=[point])], multimask=self.multimask
            )
            masks.append(prediction.results[0][0].rle)
        return masks

    async def _cost(self, call: Callable[[], Awaitable[Any]]) -> tuple[Any, Cost]:
        cpu, started = cpu_s(self.gateway_pid), time.perf_counter()
        result = await call()
        wall = time.perf_counter() - started
        return result, Cost(wall, cpu_s(self.gateway_pid) - cpu)

    def _reference_cost(self, method: str, *arguments: object) -> tuple[Timed, Cost]:
        cpu = cpu_s(self.reference.pid)
        timed = self.reference.call(method, *arguments)
        return timed, Cost(timed.seconds, cpu_s(self.reference.pid) - cpu)


def photo(pixels: np.ndarray) -> bytes:
    """Return a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def export(checkpoint: Path, name: str, repository: Path, first: str) -> Exported:
    """Export by the command line, with its check of parity, after the statement *first*."""
    program = f"{first}\nimport sys\nfrom samserve.cli.main import main\nsys.exit(main())"
    command = [sys.executable, "-c", program, "export", str(checkpoint)]
    flags = ["--repository", str(repository), "--name", name]
    started = time.perf_counter()
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
    seconds = time.perf_counter() - started
    sizes = (_bytes_on_disk(checkpoint), _bytes_on_disk(repository))
    return Exported(seconds, usage.ru_maxrss << 10, *sizes)


@dataclass(frozen=True)
class Prepared:
    """A model in both forms; ``exported`` is None if an earlier run exported it."""

    name: str
    checkpoint: Path
    repository: Path
    exported: Exported | None
    toy: bool


def prepare(name: str, folder: Path, *, toy: bool) -> Prepared:
    """Build the checkpoint of a model and export it, unless *folder* has both."""
    place, repository = folder / name, folder / name / "models"
    if (repository / f"{name}_decoder").exists():
        (checkpoint,) = place.glob("checkpoint*")
        return Prepared(name, checkpoint, repository, None, toy)
    place.mkdir(parents=True, exist_ok=True)
    checkpoint = build(name, place, toy=toy)
    first = candidates(toy=toy)[name].exporting
    return Prepared(name, checkpoint, repository, export(checkpoint, name, repository, first), toy)


async def measure(prepared: Prepared, plan: Plan, threads: int) -> Report:
    """Serve a model, and compare it with its reference."""
    name, toy = prepared.name, prepared.toy
    candidate = candidates(toy=toy)[name]
    report = Report(name, candidate.title, prepared.exported)
    shared = {"engine.threads": threads, "log.level": "warning"}
    with GatewayServer({**shared, "engine.kind": "fake"}) as gateway:
        without_model = _resident(gateway.pid)
    chosen = {"engine.kind": "onnx", "engine.model_repository": prepared.repository}
    with GatewayServer({**shared, **chosen, "engine.default_model": name}) as gateway:
        reference = ReferenceProcess(name, prepared.checkpoint, threads=threads, toy=toy)
        report.memory["without a model"] = (without_model, reference.bytes_before_loading)
        async with Client(gateway.target) as client:
            bench = Bench(client, gateway.pid, reference, candidate.multimask, plan)
            await _run(bench, report)
        reference.close()
    return report


async def _run(bench: Bench, report: Report) -> None:
    pids = (bench.gateway_pid, bench.reference.pid)
    report.memory["with the model"] = (_resident(pids[0]), _resident(pids[1]))
    first = next(iter(bench.plan.images.values()))
    steps: Sequence[tuple[str, Callable[[str, bytes], Awaitable[Comparison]]]] = (
        ("Embed", bench.compare_embed),
        ("Predict", bench.compare_predict),
        ("AutoMask", bench.compare_automask),
    )
    await bench.client.delete_embedding(await bench.client.embed(first))
    bench.reference.call("embed", first)
    report.memory["after an Embed"] = (_resident(pids[0]), _resident(pids[1]))
    for title, step in steps:
        for pid in pids:
            _reset_peak(pid)
        for name, image in bench.plan.images.items():
            report.comparisons.append(await step(name, image))
            # A whole run takes many minutes.
            print(report.comparisons[-1].row(), file=sys.stderr, flush=True)
        report.memory[f"peak of {title}"] = (_peak(pids[0]), _peak(pids[1]))


def _points(height: int, width: int) -> list[tuple[float, float]]:
    """Return points of a grid of 5 x 5, in pixels."""
    steps = (np.arange(5) + 0.5) / 5
    return [(float(x * width), float(y * height)) for y in steps for x in steps]


def _iou(mask: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    return float(coco.iou([mask], [other], [0])[0, 0])


def _matched(masks: Sequence[Any], others: Sequence[Any]) -> float:
    """Return the median over *masks* of the best IoU with one of *others*."""
    if not masks or not others:
        return float("nan")
    return float(np.median(coco.iou(list(masks), list(others), [0] * len(others)).max(1)))


def _arrows(counts: Sequence[int]) -> str:
    return "→".join(str(each) for each in counts)


def _divided(cost: Cost, calls: int) -> Cost:
    return Cost(cost.wall_s / calls, cost.cpu_s / calls)


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def _bytes_on_disk(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(each.stat().st_size for each in files if each.is_file())


def _resident(pid: int) -> int:
    return int(psutil.Process(pid).memory_info().rss)


def _reset_peak(pid: int) -> None:
    """Set the peak of the resident memory to its current value (proc(5), ``clear_refs``)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def _peak(pid: int) -> int:
    """Return the peak of the resident memory since the last reset, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    line = next(each for each in status.splitlines() if each.startswith("VmHWM:"))
    return int(line.split()[1]) << 10


def run(
    chosen: argparse.Namespace, folder: Path, images: Mapping[str, bytes], *, toy: bool
) -> None:
    """Measure the models one after the other, and print tables."""
    plan = Plan(
        chosen.rounds, chosen.predictions, chosen.automask_rounds, chosen.points_per_side, images
    )
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    print(f"{platform.machine()}, {chosen.threads} threads; {versions}")
    print(f"AutoMask: {OPTIONS}\n", flush=True)
    reports = []
    for name in chosen.models.split(","):
        prepared = prepare(name, folder, toy=toy)
        reports.append(asyncio.run(measure(prepared, plan, chosen.threads)))
        print(reports[-1].text(), end="\n\n", flush=True)
    return reports


def main() -> None:
    """Run the benchmark; checkpoints and exported models stay in *folder*, if it is set."""
    chosen = options(
        __doc__,
        models=",".join(candidates(toy=False)),
        folder="",
        rounds=9,
        predictions=10,
        automask_rounds=3,
        points_per_side=16,
        threads=2,
    )
    images = {
        "640x427": photo(photos.coffee_427x640()),
        "1200x1800": photo(photos.hubble_1800x1200()),
    }
    with tempfile.TemporaryDirectory() as temporary:
        run(chosen, Path(chosen.folder or temporary), images, toy=False)


if __name__ == "__main__":
    main()
