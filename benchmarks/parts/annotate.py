"""`samserve annotate` over a folder, against a loop that segments one image after another.

Both sides read, convert and write the same images, with a server in the process, as the command
has.  The time with a running decoder is that between its first inference and the end of its last.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import onnxruntime as ort
from prometheus_client import CollectorRegistry
from samserve import app
from samserve.annotate import pipeline
from samserve.annotate import run as runs
from samserve.annotate.automask import AutoMaskSegmenter
from samserve.annotate.gateways import Gateways
from samserve.annotate.source import ImageFile
from samserve.cli.annotate import CONCURRENCY
from samserve.cli.records import sa1b_record
from samserve.client import AutoMaskOptions, Client
from samserve.engines.onnx import OnnxEngine
from samserve.settings import load
from samserve.telemetry.metrics import Metrics

from benchmarks.gateways import DEFAULT_MODEL
from benchmarks.parts import Plan
from benchmarks.results import Comparison, Cost, Figure, Result
from tests.annotate.killed_runs import agreement
from tests.annotate.photos import write_mixed

IMAGES, LONGEST = 200, 480
OURS, LOOP = "samserve annotate", "one image after another"
OPTIONS: AutoMaskOptions = {
    "points_per_side": 8,
    "pred_iou_thresh": 0.7,
    "stability_score_thresh": 0.85,
}
Annotate = Callable[[Client, Path, Path], Awaitable[None]]


def run(plan: Plan) -> Result:
    """Annotate a folder in both ways, each with a server that has no embeddings yet."""
    count = 4 if plan.toy else IMAGES // 4 if plan.quick else IMAGES
    source = plan.folder / f"annotate-{count}"
    write_mixed(source, count, longest=LONGEST)
    outs = [source.with_name(f"{source.name}-{side}") for side in ("ours", "theirs")]
    ours, our_share = asyncio.run(_measured(plan, _annotate, source, outs[0]))
    theirs, their_share = asyncio.run(_measured(plan, _loop, source, outs[1]))
    found = agreement(*outs)
    agreed = (
        f"{found.masks} masks, {len(found.other_selection)} images with other masks, "
        f"least part of equal pixels {found.equal_pixels:.6f}"
    )
    name = f"{count} images, 8x8 points"
    shares = ((OURS, our_share), (LOOP, their_share))
    return Result(
        "annotate",
        [Comparison(name, LOOP, [ours], [theirs], agreed)],
        [Figure(f"time with a running decoder, {side}", "%", [100 * each]) for side, each in shares]
        + [Figure(f"images per second, {OURS}", "", [count / ours.wall_s])],
    )


class _Timed(OnnxEngine):
    """The engine of the server, which notes when its decoder runs, one inference at a time."""

    def __init__(self, threads: int) -> None:
        settings = load().engine
        super().__init__(
            app.select_models(settings), threads, Metrics(CollectorRegistry()), DEFAULT_MODEL
        )
        self.decodes: list[tuple[float, float]] = []

    async def _run_alone(
        self, network: str, call: Callable[[ort.RunOptions], pipeline.T]
    ) -> pipeline.T:
        def timed(options: ort.RunOptions) -> pipeline.T:
            started = time.perf_counter()
            try:
                return call(options)
            finally:
                if network == "decoder":
                    self.decodes.append((started, time.perf_counter()))

        return await super()._run_alone(network, timed)

    def busy(self) -> float:
        """Return the part of the time between the first and the last decode with one."""
        spent = sum(end - start for start, end in self.decodes)
        return spent / (self.decodes[-1][1] - self.decodes[0][0])


@asynccontextmanager
async def _server(threads: int) -> AsyncIterator[tuple[_Timed, Client]]:
    engine = _Timed(threads)
    settings = load(
        {
            "server": {"port": 0, "admin_port": 0, "drain_delay_s": 0, "grace_period_s": 1},
            "log": {"level": "warning"},
        }
    )
    async with app.running(settings, engine=engine) as service, Client(service.address) as client:
        engine.decodes.clear()  # those of the warm-up
        yield engine, client


async def _measured(plan: Plan, annotate: Annotate, source: Path, out: Path) -> tuple[Cost, float]:
    """Return the cost of annotating, and the part of the time with a running decoder."""
    async with _server(plan.threads) as (engine, client):
        cpu, started = time.process_time(), time.perf_counter()
        await annotate(client, source, out)
        cost = Cost(time.perf_counter() - started, time.process_time() - cpu)
        return cost, engine.busy()


async def _annotate(client: Client, source: Path, out: Path) -> None:
    """Annotate as the command does."""
    plan = runs.plan(str(source), str(out))
    gateways = Gateways([client])
    catalog = await gateways.models()
    (model,) = (each for each in catalog.models if each.default)
    segmenter = AutoMaskSegmenter.of(model, OPTIONS)
    images = pipeline.ImageJob(plan.source, plan.records, segmenter, model.name, model.digest)
    job: pipeline.Job[ImageFile] = pipeline.Job(
        lambda image: images.process(gateways, image), lambda image: image.name, CONCURRENCY
    )
    summary = await pipeline.run(plan.images, job)
    if summary.failures or summary.aborted:
        raise RuntimeError(f"{summary.aborted} {summary.failures[:3]}")


async def _loop(client: Client, source: Path, out: Path) -> None:
    """Segment one image after another, and write the records."""
    for path in _files(source):
        result = await client.automask_all(path, mask_format="coco_rle", **OPTIONS)
        name = path.relative_to(source).as_posix()
        record = out / "records" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(sa1b_record(result, name, "coco_rle")))


def _files(source: Path) -> list[Path]:
    return sorted(each for each in source.rglob("*") if each.is_file())
