"""What a click costs between gateway and Triton: shared memory against tensors in messages.

The time of one decode outside the model, against a real tritonserver whose decoder computes next
to nothing: by `TritonEngine` with shared memory, by `TritonEngine` with its tensors in messages,
and the usual way, which sends the embedding as float32 with every click.  The ways take turns in
short blocks, because machines drift; all processes have the same allocator settings.

``python -m benchmarks.transport [--blocks 15] [--calls 30]``
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from prometheus_client import CollectorRegistry
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.settings import TritonSettings
from samserve.stores.local.store import MemoryStore
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from benchmarks.common import ALLOCATOR, options, restart_with_allocator
from benchmarks.constant import MODEL, write_constant_pair
from harness.triton.server import TritonServer

SIDE = 1024
Decode = Callable[[], Awaitable[np.ndarray]]


@dataclass
class Way:
    """One way of decoding, and the milliseconds that it took outside the model, by block."""

    name: str
    model: str
    decode: Decode
    wall_ms: list[float] = field(default_factory=list)
    outside_ms: list[float] = field(default_factory=list)


async def engine_way(name: str, url: str, memory: str) -> Way:
    """Decode one click by the engine of the gateway."""
    engine = TritonEngine(
        TritonSettings(url=url, shared_memory=memory), Metrics(CollectorRegistry())
    )
    await engine.open()
    store = MemoryStore(16 << 20, ttl_s=3600, allocate=engine.allocate)
    info = engine.models[MODEL]
    facts = EmbeddingFacts.of(Size(SIDE, SIDE), info)
    slot = await store.reserve(EmbeddingKey("t", "x"), facts, info.embedding)
    image = EncoderInput(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), Size(SIDE, SIDE))
    await engine.encode(MODEL, image, slot, RequestContext())
    embedding, batch = slot.as_embedding(), click()

    async def decode() -> np.ndarray:
        output = await engine.decode(MODEL, embedding, batch, RequestContext())
        return output.low_res_logits

    return Way(name, f"{MODEL}_decoder", decode)


async def usual_way(url: str) -> Way:
    """Decode one click with everything in the message, the embedding as float32."""
    client = InferenceServerClient(
        url,
        channel_args=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ],
    )
    embedding = np.zeros((1, 256, 64, 64), dtype=np.float32)
    batch = click()
    fixed = {
        "point_coords": batch.point_coords[None],
        "point_labels": batch.point_labels[None],
        "mask_input": batch.mask_input[None],
    }

    async def decode() -> np.ndarray:
        tensors = {"image_embedding": embedding} | fixed
        outputs = [InferRequestedOutput(name) for name in ("low_res_logits", "predicted_iou")]
        result = await client.infer(
            f"{MODEL}_fp32_decoder", [_inline(*each) for each in tensors.items()], outputs=outputs
        )
        return result.as_numpy("low_res_logits")

    return Way("message, fp32", f"{MODEL}_fp32_decoder", decode)


def _inline(name: str, array: np.ndarray) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array)


def click() -> PromptBatch:
    """One click with its padding point."""
    return PromptBatch(
        np.array([[[300, 200], [0, 0]]], dtype=np.float32),
        np.array([[1, -1]], dtype=np.float32),
        np.zeros((0, 256, 256), dtype=np.float32),
    )


async def model_ms(client: InferenceServerClient, model: str) -> tuple[int, float]:
    """Requests so far, and the milliseconds that the backend has spent on them."""
    answer = await client.get_inference_statistics(model)
    stats = answer.model_stats[0].inference_stats
    spent = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    return stats.success.count, spent / 1e6


async def measure(ways: list[Way], url: str, blocks: int, calls: int) -> None:
    """Let the ways take turns, *calls* decodes a block."""
    client = InferenceServerClient(url)
    for way in ways:
        for _ in range(20):
            await way.decode()
    for _ in range(blocks):
        for way in ways:
            await measure_block(way, client, calls)
    await client.close()


async def measure_block(way: Way, client: InferenceServerClient, calls: int) -> None:
    """Note the median of so many decodes, and what is left of it without the model's mean."""
    before = await settled(client, way.model)
    wall = []
    for _ in range(calls):
        start = time.perf_counter()
        logits = await way.decode()
        wall.append((time.perf_counter() - start) * 1e3)
        assert logits.shape[-3:] == (4, 256, 256)
        del logits
    after = await settled(client, way.model, before[0] + calls)
    model = (after[1] - before[1]) / (after[0] - before[0])
    way.wall_ms.append(statistics.median(wall))
    way.outside_ms.append(statistics.median(wall) - model)


async def settled(
    client: InferenceServerClient, model: str, at_least: int = 0
) -> tuple[int, float]:
    """Statistics lag behind the answers."""
    while True:
        found = await model_ms(client, model)
        if found[0] >= at_least:
            return found
        await asyncio.sleep(0.005)


def print_ways(ways: list[Way]) -> None:
    """Print a table; the last way is what the others are compared with."""
    print(f"{'way':24} {'decode p50 ms':>14} {'outside model ms':>17} {'x cheaper':>10}")
    for way in ways:
        ratios = [
            theirs / ours for ours, theirs in zip(way.outside_ms, ways[-1].outside_ms, strict=True)
        ]
        print(
            f"{way.name:24} {statistics.median(way.wall_ms):14.2f}"
            f" {statistics.median(way.outside_ms):17.2f} {statistics.median(ratios):10.1f}"
        )


async def transport(url: str, blocks: int, calls: int) -> None:
    """Measure and print the ways."""
    ways = [
        await engine_way("shared memory", url, "required"),
        await engine_way("message, fp16", url, "off"),
        await usual_way(url),
    ]
    await measure(ways, url, blocks, calls)
    print_ways(ways)


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__, blocks=15, calls=30)
    restart_with_allocator("benchmarks.transport")
    with tempfile.TemporaryDirectory() as folder:
        write_constant_pair(Path(folder) / "models")
        with TritonServer(
            Path(folder) / "models", log=Path(folder) / "log", env=ALLOCATOR
        ) as server:
            asyncio.run(transport(server.grpc_address, arguments.blocks, arguments.calls))


if __name__ == "__main__":
    main()
