"""Many minutes of point prompts at 80 % of what the gateway can serve: errors, and its memory."""

from __future__ import annotations

import asyncio
import itertools
import time
from dataclasses import dataclass, field

import numpy as np
import psutil
from samserve.client import Client, Embedding
from samserve.client.errors import SamserveClientError

from benchmarks.gateways import Gateway, Side, points
from benchmarks.machine import MIB, resident
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.results import Figure, Latencies, Result

SHARE = 0.8
CLIENTS = 8
CALIBRATION_S = 10.0
SAMPLES = 200
SIZES = ((640, 480), (1800, 1200))


@dataclass
class Load:
    """Calls at a fixed rate, which alternate between sizes and numbers of masks."""

    user: Side
    embeddings: list[tuple[Embedding, list[tuple[float, float]]]]
    latencies: Latencies
    errors: int = 0
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def call(self, due: float) -> None:
        """Send one call, timed from when it was due."""
        number = next(self.numbers)
        embedding, where = self.embeddings[number % len(self.embeddings)]
        multimask = "all" if number % 4 < 2 else "auto"
        try:
            await self.user.predict(embedding, where[number % len(where)], multimask)
        except SamserveClientError:
            self.errors += 1
        self.latencies.values_ms.append(1e3 * (time.perf_counter() - due))

    async def capacity(self, seconds: float) -> float:
        """Return the calls per second that clients get that never pause."""
        end = time.perf_counter() + seconds

        async def client() -> None:
            while time.perf_counter() < end:
                await self.call(time.perf_counter())

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        return len(self.latencies.values_ms) / seconds

    async def at_rate(self, rate: float, seconds: float) -> None:
        """Send calls at random moments, as many a second as *rate*."""
        random = np.random.default_rng(0)
        due, end = time.perf_counter(), time.perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            while due < end:
                due += random.exponential(1 / rate)
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self.call(due))


def run(plan: Plan) -> Result:
    """Measure for the minutes of the plan, after a short measurement of what the gateway can do."""
    with Gateway(plan.threads) as gateway:
        return asyncio.run(_measure(gateway, plan))


async def _measure(gateway: Gateway, plan: Plan) -> Result:
    seconds = 60 * plan.minutes
    async with Client(gateway.target) as client:
        embeddings = [
            (await client.embed(photograph(*size)), points(*size, 64))
            for size in (SIZES[:1] if plan.toy else SIZES)
        ]
        load = Load(Side(client, gateway.pid), embeddings, Latencies("warm-up"))
        rate = SHARE * await load.capacity(min(CALIBRATION_S, seconds))
        load.latencies, load.errors = Latencies("call at 80 % load"), 0
        memory: list[tuple[float, float]] = []
        watching = asyncio.create_task(_watch(gateway.pid, seconds / SAMPLES, memory))
        files = psutil.Process(gateway.pid).num_fds()
        await load.at_rate(rate, seconds)
        watching.cancel()
        more = psutil.Process(gateway.pid).num_fds() - files
    minutes, mib = np.array(memory).T
    later = minutes >= minutes[-1] / 4
    slope = np.polyfit(minutes[later], mib[later], 1)[0] if later.sum() > 1 else 0.0
    figures = [
        Figure("calls", "per second", [rate]),
        Figure("errors", "calls", [float(load.errors)]),
        Figure("resident memory, first quarter", "MiB", list(mib[~later])),
        Figure("resident memory, last quarter", "MiB", list(mib[minutes >= minutes[-1] * 3 / 4])),
        Figure("slope of the memory after the first quarter", "MiB per minute", [float(slope)]),
        Figure("open files, change", "files", [float(more)]),
    ]
    few = load.latencies.values_ms[:: max(1, len(load.latencies.values_ms) // 2000)]
    notes = [f"{len(load.latencies.values_ms)} calls in {plan.minutes:g} minutes, default model."]
    return Result(
        "soak", figures=figures, latencies=[Latencies(load.latencies.name, few)], notes=notes
    )


async def _watch(pid: int, interval_s: float, memory: list[tuple[float, float]]) -> None:
    """Sample minutes and MiB until cancelled."""
    started = time.perf_counter()
    while True:
        memory.append(((time.perf_counter() - started) / 60, resident(pid) / MIB))
        await asyncio.sleep(interval_s)
