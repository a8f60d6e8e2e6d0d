"""AutoMask of the service against the original generator, interleaved in one run.

``python -m benchmarks.automask [--repeats 3] [--points-per-side 32]``

Both run the default model's ONNX files on the same threads and find the same masks: the original
`SamAutomaticMaskGenerator` in this process, the product through its gRPC server.  The figure is
the ratio of wall-clock times; this is a machine's own baseline, so it travels between machines.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import skimage.data
import torch
from samserve import app, settings
from samserve.client import Client
from samserve.system.limits import core_count
from samserve.telemetry import logs

from benchmarks import common
from tests.oracle.generator import auto_mask
from tests.oracle.onnx_sam import OnnxSam

IMAGES: dict[str, Callable[[], np.ndarray]] = {
    "coins 384x303": lambda: np.repeat(skimage.data.coins()[..., None], 3, axis=2),
    "retina 1411x1411": lambda: np.ascontiguousarray(skimage.data.retina()),
}


@dataclass(frozen=True)
class Run:
    """Seconds of one search and how many masks it found."""

    seconds: float
    masks: int


async def product(client: Client, image: np.ndarray, points_per_side: int) -> Run:
    """Search through the server; the embedding is made anew, as the original does."""
    started = time.perf_counter()
    found = await client.automask_all(image, points_per_side=points_per_side)
    seconds = time.perf_counter() - started
    await client.delete_embedding(found.summary.embedding.id)
    return Run(seconds, len(found.records))


def original(sam: OnnxSam, image: np.ndarray, points_per_side: int) -> Run:
    """Search with the original generator."""
    started = time.perf_counter()
    records, _ = auto_mask(sam, image, points_per_side=points_per_side, output_mode="coco_rle")
    return Run(time.perf_counter() - started, len(records))


async def main() -> None:
    """Measure and print one line for each image."""
    options = common.options(__doc__, repeats=3, points_per_side=32)
    chosen = settings.load({"server": {"port": 0, "admin_port": 0}, "log": {"level": "warning"}})
    logs.configure(chosen.log)
    threads = core_count()
    torch.set_num_threads(threads)
    repository = app.default_repository()
    graphs = [next(repository.glob(f"*_{role}/1/model.onnx")) for role in ("encoder", "decoder")]
    sam = OnnxSam(*graphs, threads=threads)
    async with app.running(chosen) as service, Client(service.address) as client:
        for name, make in IMAGES.items():
            image = make()
            pairs = []
            for _ in range(options.repeats):
                ours = await product(client, image, options.points_per_side)
                theirs = await asyncio.to_thread(original, sam, image, options.points_per_side)
                pairs.append((ours, theirs))
            report(name, pairs)


def report(name: str, pairs: list[tuple[Run, Run]]) -> None:
    """Print median times and the median of the ratios of neighbouring runs."""
    ours, theirs = (statistics.median(pair[side].seconds for pair in pairs) for side in (0, 1))
    ratio = statistics.median(pair[1].seconds / pair[0].seconds for pair in pairs)
    masks = f"{pairs[0][0].masks} and {pairs[0][1].masks} masks"
    print(f"{name}: service {ours:.1f} s, original {theirs:.1f} s, ratio {ratio:.2f}, {masks}")


if __name__ == "__main__":
    asyncio.run(main())
