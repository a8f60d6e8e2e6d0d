"""AutoMask of the service compared with the original generator, interleaved in one run.

``python -m benchmarks.automask [--repeats 3] [--points-per-side 32]``

Both run the default model's ONNX files on the same number of threads and find the same masks: the
original `SamAutomaticMaskGenerator` in this process, samserve through its gRPC server.  The result
is the ratio of wall-clock times; with a baseline on the same machine, it is comparable between
machines.
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
    """Duration of one AutoMask run and the number of masks it found."""

    seconds: float
    masks: int


async def run_service(client: Client, image: np.ndarray, points_per_side: int) -> Run:
    """Run AutoMask through the server; the image is encoded every time, as by the original."""
    started = time.perf_counter()
    result = await client.automask_all(image, points_per_side=points_per_side)
    seconds = time.perf_counter() - started
    await client.delete_embedding(result.summary.embedding.id)
    return Run(seconds, len(result.records))


def run_original(sam: OnnxSam, image: np.ndarray, points_per_side: int) -> Run:
    """Run the original generator."""
    started = time.perf_counter()
    records, _ = auto_mask(sam, image, points_per_side=points_per_side, output_mode="coco_rle")
    return Run(time.perf_counter() - started, len(records))


async def main() -> None:
    """Measure and print one line for each image."""
    options = common.options(__doc__, repeats=3, points_per_side=32)
    config = settings.load({"server": {"port": 0, "admin_port": 0}, "log": {"level": "warning"}})
    logs.configure(config.log)
    threads = core_count()
    torch.set_num_threads(threads)
    repository = app.default_repository()
    graphs = [next(repository.glob(f"*_{role}/1/model.onnx")) for role in ("encoder", "decoder")]
    sam = OnnxSam(*graphs, threads=threads)
    async with app.running(config) as service, Client(service.address) as client:
        for name, load in IMAGES.items():
            image = load()
            pairs = []
            for _ in range(options.repeats):
                ours = await run_service(client, image, options.points_per_side)
                other = await asyncio.to_thread(run_original, sam, image, options.points_per_side)
                pairs.append((ours, other))
            report(name, pairs)


def report(name: str, pairs: list[tuple[Run, Run]]) -> None:
    """Print median times and the median of the ratios of consecutive runs."""
    ours, other = (statistics.median(pair[side].seconds for pair in pairs) for side in (0, 1))
    ratio = statistics.median(pair[1].seconds / pair[0].seconds for pair in pairs)
    masks = f"{pairs[0][0].masks} and {pairs[0][1].masks} masks"
    print(f"{name}: service {ours:.1f} s, original {other:.1f} s, ratio {ratio:.2f}, {masks}")


if __name__ == "__main__":
    asyncio.run(main())
