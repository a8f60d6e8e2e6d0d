"""What a Predict costs the gateway: CPU time of its process over a decoder that computes nothing.

The models run in a real tritonserver, memory is shared, and every call finds its embedding.  CPU
time counts all threads of the gateway, the post-processing of masks among them.

``python -m benchmarks.gateway_cpu [--calls 300]``
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import psutil
from samserve.client import Client, Prompt

from benchmarks.allocator import ALLOCATOR, restart_with_allocator
from benchmarks.constant import write_constant_pair
from harness.triton.server import TritonServer

_ANSWERS = {False: "", True: ", low-res logits too", "only": ", low-res logits only"}
SIZES = ((256, 256), (480, 640), (1080, 1920))


@contextmanager
def gateway(url: str) -> Iterator[tuple[psutil.Process, str]]:
    """Run a gateway on that Triton; gives its process and its address."""
    settings = {
        "engine.kind": "triton",
        "triton.url": url,
        "triton.shared_memory": "required",
        "server.port": 0,
        "server.admin_port": 0,
        "store.capacity_bytes": 64 << 20,
    }
    command = [sys.executable, "-m", "samserve", "serve"]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    # Its log goes through a pipe, as in production.
    with tempfile.TemporaryFile() as rest, subprocess.Popen(command, stderr=-1) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if found := re.search(r"serving .*address=(\S+)", line.decode()):
                break
        else:
            raise SystemExit("the gateway did not start")
        drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=rest)
        try:
            yield psutil.Process(process.pid), found[1]
        finally:
            process.terminate()
            process.wait()
            drain.wait()


async def measure(process: psutil.Process, address: str, calls: int) -> None:
    """Print a line for each size of picture, with and without logits in the answer."""
    print(f"{'Predict of one click':36} {'p50 ms':>8} {'gateway CPU ms':>15}")
    async with Client(address) as client:
        for height, width in SIZES:
            embedding = await client.embed(np.zeros((height, width, 3), dtype=np.uint8))
            prompt = Prompt(points=[(width / 2, height / 2)])
            for logits in (False, True, "only"):
                click = partial(client.predict, embedding, [prompt], low_res_logits=logits)
                await timed(click, 50)
                before = sum(process.cpu_times()[:2])
                wall_ms = await timed(click, calls)
                spent_ms = (sum(process.cpu_times()[:2]) - before) / calls * 1e3
                name = f"{width}x{height}" + _ANSWERS[logits]
                print(f"{name:36} {statistics.median(wall_ms):8.2f} {spent_ms:15.2f}")


async def timed(call: Callable[[], Awaitable[object]], times: int) -> list[float]:
    """Milliseconds of each call."""
    found = []
    for _ in range(times):
        start = time.perf_counter()
        await call()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=300)
    arguments = parser.parse_args()
    restart_with_allocator("benchmarks.gateway_cpu")
    with tempfile.TemporaryDirectory() as folder:
        models = Path(folder) / "models"
        write_constant_pair(models)
        with (
            TritonServer(models, log=Path(folder) / "log", env=ALLOCATOR) as server,
            gateway(server.grpc_address) as (process, address),
        ):
            asyncio.run(measure(process, address, arguments.calls))


if __name__ == "__main__":
    main()
