"""Transport cost of a decode between gateway and Triton: shared memory compared with messages.

Measures the time of one decode outside the model, with a real tritonserver whose decoder computes
almost nothing: by `TritonEngine` with shared memory, by `TritonEngine` with tensors in messages,
and in the conventional way, which sends the embedding as float32 with every request.  The methods
alternate in short blocks, because the speed of machines drifts.

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
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, PromptBatch
from samserve.engines.triton.engine import TritonEngine
from samserve.settings import TritonSettings
from samserve.telemetry.metrics import Metrics
from samserve.types import EmbeddingFacts, EmbeddingKey, Size
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import np_to_triton_dtype

from benchmarks.common import options
from benchmarks.constant import MODEL, write_constant_pair
from harness.triton.server import TritonServer

SIDE = 1024
Decode = Callable[[], Awaitable[np.ndarray]]


@dataclass
class Method:
    """One method of decoding, and its milliseconds, in total and outside the model, by block."""

    name: str
    model: str
    decode: Decode
    wall_ms: list[float] = field(default_factory=list)
    outside_ms: list[float] = field(default_factory=list)


async def engine_method(name: str, url: str, memory: str) -> Method:
    """Decode one point prompt with the engine of the gateway."""
    engine = TritonEngine(
        TritonSettings(url=url, shared_memory=memory), Metrics(CollectorRegistry())
    )
    await engine.open()
    cache = LocalCache(16 << 20, ttl_s=3600, allocate=engine.allocate)
    info = engine.models[MODEL]
    facts = EmbeddingFacts.of(Size(SIDE, SIDE), info)
    slot = await cache.reserve(EmbeddingKey("t", "x"), facts, info.embedding)
    image = EncoderInput(np.zeros((SIDE, SIDE, 3), dtype=np.uint8), Size(SIDE, SIDE))
    await engine.encode(MODEL, image, slot, RequestContext())
    embedding, batch = slot.as_embedding(), point_prompt()

    async def decode() -> np.ndarray:
        output = await engine.decode(MODEL, embedding, batch, RequestContext())
        return output.low_res_logits

    return Method(name, f"{MODEL}_decoder", decode)


async def conventional_method(url: str) -> Method:
    """Decode one point prompt with all tensors in the message, the embedding as float32."""
    client = InferenceServerClient(
        url,
        channel_args=[
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ],
    )
    embedding = np.zeros((1, 256, 64, 64), dtype=np.float32)
    batch = point_prompt()
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

    return Method("message, fp32", f"{MODEL}_fp32_decoder", decode)


def _inline(name: str, array: np.ndarray) -> InferInput:
    tensor = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    return tensor.set_data_from_numpy(array)


def point_prompt() -> PromptBatch:
    """Return one point prompt with its padding point."""
    return PromptBatch(
        np.array([[[300, 200], [0, 0]]], dtype=np.float32),
        np.array([[1, -1]], dtype=np.float32),
        np.zeros((0, 256, 256), dtype=np.float32),
    )


async def model_ms(client: InferenceServerClient, model: str) -> tuple[int, float]:
    """Return the number of requests so far, and the milliseconds of the backend for them."""
    response = await client.get_inference_statistics(model)
    stats = response.model_stats[0].inference_stats
    spent = stats.compute_input.ns + stats.compute_infer.ns + stats.compute_output.ns
    return stats.success.count, spent / 1e6


async def measure(methods: list[Method], url: str, blocks: int, calls: int) -> None:
    """Alternate between the methods, with *calls* decodes per block."""
    client = InferenceServerClient(url)
    for method in methods:
        for _ in range(20):
            await method.decode()
    for _ in range(blocks):
        for method in methods:
            await measure_block(method, client, calls)
    await client.close()


async def measure_block(method: Method, client: InferenceServerClient, calls: int) -> None:
    """Record the median of *calls* decodes, and that median less the mean time of the model."""
    before = await statistics_after(client, method.model)
    wall = []
    for _ in range(calls):
        start = time.perf_counter()
        logits = await method.decode()
        wall.append((time.perf_counter() - start) * 1e3)
        assert logits.shape[-3:] == (4, 256, 256)
        del logits
    after = await statistics_after(client, method.model, before[0] + calls)
    model = (after[1] - before[1]) / (after[0] - before[0])
    method.wall_ms.append(statistics.median(wall))
    method.outside_ms.append(statistics.median(wall) - model)


async def statistics_after(
    client: InferenceServerClient, model: str, requests: int = 0
) -> tuple[int, float]:
    """Return `model_ms` once it includes *requests*; statistics lag behind the responses."""
    while True:
        found = await model_ms(client, model)
        if found[0] >= requests:
            return found
        await asyncio.sleep(0.005)


def print_methods(methods: list[Method]) -> None:
    """Print a table; the last method is the baseline."""
    print(f"{'method':24} {'decode p50 ms':>14} {'outside model ms':>17} {'x faster':>10}")
    baseline = methods[-1].outside_ms
    for method in methods:
        ratios = [base / own for own, base in zip(method.outside_ms, baseline, strict=True)]
        print(
            f"{method.name:24} {statistics.median(method.wall_ms):14.2f}"
            f" {statistics.median(method.outside_ms):17.2f} {statistics.median(ratios):10.1f}"
        )


async def transport(url: str, blocks: int, calls: int) -> None:
    """Measure all methods and print the results."""
    methods = [
        await engine_method("shared memory", url, "required"),
        await engine_method("message, fp16", url, "off"),
        await conventional_method(url),
    ]
    await measure(methods, url, blocks, calls)
    print_methods(methods)


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__, blocks=15, calls=30)
    with tempfile.TemporaryDirectory() as folder:
        write_constant_pair(Path(folder) / "models")
        with TritonServer(Path(folder) / "models", log=Path(folder) / "log") as server:
            asyncio.run(transport(server.grpc_address, arguments.blocks, arguments.calls))


if __name__ == "__main__":
    main()
