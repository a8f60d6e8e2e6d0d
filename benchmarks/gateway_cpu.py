"""CPU time of the gateway process per Predict call, with a decoder that computes nothing.

The models run in a real tritonserver with shared memory, and every call is a cache hit.  CPU time
includes all threads of the gateway, and so the post-processing of masks.

``python -m benchmarks.gateway_cpu [--calls 300]``
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from samserve.client import Client, Prompt

from benchmarks.common import ALLOCATOR, cpu_s, milliseconds, options, restart_with_allocator
from benchmarks.constant import write_constant_pair
from harness.gateway import GatewayServer
from harness.triton.server import TritonServer

_OUTPUTS = {False: "", True: ", with low-res logits", "only": ", low-res logits only"}
SIZES = ((256, 256), (480, 640), (1080, 1920))


async def measure(pid: int, address: str, calls: int) -> None:
    """Print a line for each image size, with and without logits in the response."""
    print(f"{'Predict with one point':36} {'p50 ms':>8} {'gateway CPU ms':>15}")
    async with Client(address) as client:
        for height, width in SIZES:
            embedding = await client.embed(np.zeros((height, width, 3), dtype=np.uint8))
            prompt = Prompt(points=[(width / 2, height / 2)])
            for logits in (False, True, "only"):
                predict = partial(client.predict, embedding, [prompt], low_res_logits=logits)
                for _ in range(50):
                    await predict()
                before = cpu_s(pid)
                wall_ms = [await milliseconds(predict) for _ in range(calls)]
                cpu_ms = (cpu_s(pid) - before) / calls * 1e3
                name = f"{width}x{height}" + _OUTPUTS[logits]
                print(f"{name:36} {statistics.median(wall_ms):8.2f} {cpu_ms:15.2f}")


def main() -> None:
    """Run the benchmark."""
    arguments = options(__doc__, calls=300)
    restart_with_allocator("benchmarks.gateway_cpu")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_constant_pair(models)
        with TritonServer(models, log=Path(folder) / "log", env=ALLOCATOR) as server:
            settings = {
                "engine.kind": "triton",
                "triton.url": server.grpc_address,
                "triton.shared_memory": "required",
                "cache.local.capacity_bytes": 64 << 20,
            }
            with GatewayServer(settings, log=Path(folder) / "gateway.log") as gateway:
                asyncio.run(measure(gateway.pid, gateway.target, arguments.calls))


if __name__ == "__main__":
    main()
