"""AutoMask of the default model on an image of 48 megapixels, and clicks on it."""

from __future__ import annotations

import asyncio

from samserve.client import Client

from benchmarks.gateways import Gateway, Side
from benchmarks.machine import MIB, resident
from benchmarks.parts import Plan
from benchmarks.photographs import coins
from benchmarks.results import Figure, Result

ROUNDS = 2
SIZE = (8000, 6000)


def run(plan: Plan) -> Result:
    """Segment everything with 16 x 16 points."""
    size, side = ((384, 303), 6) if plan.toy else (SIZE, 16)
    with Gateway(plan.threads) as gateway:
        figures, masks = asyncio.run(_measure(gateway, plan, coins(*size), side))
    name = f"{size[0]}x{size[1]}, {side**2:,} points: "
    for each in figures:
        each.name = name + each.name
    return Result("large", figures=figures, notes=[f"Masks found: {masks}."])


async def _measure(
    gateway: Gateway, plan: Plan, image: bytes, points_per_side: int
) -> tuple[list[Figure], int]:
    wall, cpu = Figure("time", "s"), Figure("CPU time", "s")
    memory = Figure("peak memory above the model", "MiB")
    base = resident(gateway.pid)
    async with Client(gateway.target) as client:
        side = Side(client, gateway.pid)
        for _ in range(plan.blocks(ROUNDS)):
            found = await side.automask(image, {"points_per_side": points_per_side})
            wall.values.append(found.cost.wall_s)
            cpu.values.append(found.cost.cpu_s)
            memory.values.append((found.peak_bytes - base) / MIB)
    return [wall, cpu, memory], len(found.rles)
