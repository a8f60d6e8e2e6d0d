"""Latency and throughput of the encoder and the decoder on a running Triton.

Requests are sent by the gateway's `TritonEngine`, so that transport and batching are those of
production.  On a GPU machine, start Triton as described in ``docs/triton.md`` and run, for a SAM
ViT-B on an H100::

    python -m benchmarks.models --url 127.0.0.1:8001 --model sam_vit_b \\
        --encoder-tflop 0.972 --peak-tflops 790

The last two numbers determine the lower bound next to each figure: work per image (ViT-B 0.972,
ViT-L 2.986, ViT-H 5.961 TFLOP) and the peak throughput of the GPU; a prompt of SAM's decoder is
3.62 GFLOP.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.memory.slot import Slot
from samserve.settings import TritonSettings
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, ModelInfo, Size

from benchmarks.common import options

DECODER_TFLOP = 3.62e-3
"""Work of one prompt of SAM's decoder with seven tokens."""

CONCURRENCY = (1, 8, 32)
PROMPTS = (1, 16, 64)


@dataclass(frozen=True)
class Floor:
    """The time that the arithmetic alone would take; unknown if *peak_tflops* is 0."""

    encoder_tflop: float
    peak_tflops: float

    def text(self, tflop: float) -> str:
        """Return the milliseconds for an amount of work, or "-"."""
        if not self.peak_tflops or not tflop:
            return "-"
        return f"{tflop / self.peak_tflops * 1e3:.2f}"


@dataclass(frozen=True)
class Bench:
    """One model on one engine."""

    engine: TritonEngine
    cache: LocalCache
    model: ModelInfo

    async def slot(self, name: str) -> Slot:
        """Reserve memory for an embedding."""
        side = self.model.image_size
        facts = EmbeddingFacts.of(Size(side, side), self.model)
        return await self.cache.reserve(EmbeddingKey("t", name), facts, self.model.embedding)

    async def encode(self, slot: Slot, image: EncoderInput) -> None:
        """Encode an image."""
        await self.engine.encode(self.model.name, image, slot, RequestContext())

    async def decode(self, slot: Slot, prompts: PromptBatch) -> None:
        """Decode prompts and discard the result."""
        await self.engine.decode(self.model.name, slot.as_embedding(), prompts, RequestContext())


def noise(model: ModelInfo) -> EncoderInput:
    """Return a random image that fills the model frame."""
    side = model.image_size
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return EncoderInput(pixels, Size(side, side))


def point_prompts(count: int, model: ModelInfo) -> PromptBatch:
    """Return point prompts along the diagonal, each with its padding point."""
    coords = np.zeros((count, 2, 2), dtype=np.float32)
    coords[:, 0] = np.linspace(0.1, 0.9, count)[:, None] * model.image_size
    labels = np.tile(np.array([1, -1], dtype=np.float32), (count, 1))
    return PromptBatch(coords, labels, np.zeros((0, model.mask_size, model.mask_size), np.float32))


async def timed(
    call: Callable[[int], Awaitable[None]], callers: int, seconds: float
) -> list[float]:
    """Call repeatedly from *callers* tasks for some seconds; return milliseconds of every call."""
    durations: list[float] = []
    end = time.perf_counter() + seconds

    async def loop(number: int) -> None:
        while time.perf_counter() < end:
            start = time.perf_counter()
            await call(number)
            durations.append((time.perf_counter() - start) * 1e3)

    await asyncio.gather(*(loop(number) for number in range(callers)))
    return durations


def row(name: str, callers: int, durations: list[float], per_call: int, floor: str) -> str:
    """Format one row; by Little's law the rate follows from latency and callers."""
    rate = callers / statistics.mean(durations) * 1e3 * per_call
    p50, p99 = np.percentile(durations, (50, 99))
    return f"{name:22} {callers:8d} {p50:9.2f} {p99:9.2f} {rate:10.1f} {floor:>9}"


async def run(arguments: argparse.Namespace) -> None:
    """Measure and print the results."""
    floor = Floor(arguments.encoder_tflop, arguments.peak_tflops)
    engine = TritonEngine(
        TritonSettings(url=arguments.url), Metrics(CollectorRegistry()), arguments.model
    )
    await engine.open()
    cache = LocalCache(256 << 20, ttl_s=3600, allocate=engine.allocate)
    bench = Bench(engine, cache, next(iter(engine.models.values())))
    slots = [await bench.slot(str(number)) for number in range(max(CONCURRENCY))]
    image = noise(bench.model)
    for slot in slots:
        await bench.encode(slot, image)
    print(f"{bench.model.name} by {engine.transport.value}")
    print(f"{'':22} {'callers':>8} {'p50 ms':>9} {'p99 ms':>9} {'per second':>10} {'floor ms':>9}")
    for callers in CONCURRENCY:
        durations = await timed(
            lambda number: bench.encode(slots[number], image), callers, arguments.seconds
        )
        print(row("encoder, images", callers, durations, 1, floor.text(floor.encoder_tflop)))
    for count in PROMPTS:
        batch = point_prompts(count, bench.model)
        await bench.decode(slots[0], batch)
        for callers in CONCURRENCY:
            durations = await timed(
                lambda number, batch=batch: bench.decode(slots[number], batch),
                callers,
                arguments.seconds,
            )
            name = f"decoder, {count} prompts"
            print(row(name, callers, durations, count, floor.text(DECODER_TFLOP * count)))
    await cache.aclose()
    await engine.aclose()


def main() -> None:
    """Run the benchmark."""
    chosen = options(
        __doc__, url="127.0.0.1:8001", model="", seconds=5.0, encoder_tflop=0.0, peak_tflops=0.0
    )
    asyncio.run(run(chosen))


if __name__ == "__main__":
    main()
