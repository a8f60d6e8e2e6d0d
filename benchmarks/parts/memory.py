"""Memory of a gateway with a decoder of SAM: after its start, and at the peak of an AutoMask."""

from __future__ import annotations

import asyncio

from samserve.client import Client

from benchmarks.gateways import Gateway, Side
from benchmarks.machine import MIB, resident
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.results import Figure, Result
from benchmarks.sam_model import NAME, prepare


def run(plan: Plan) -> Result:
    """Segment everything once in a new gateway."""
    model = prepare(plan.folder, toy=plan.toy)
    size, side = ((160, 120), 8) if plan.toy else ((1800, 1200), 32)
    with Gateway(plan.threads, repository=model.repository, model=NAME) as gateway:
        figures = asyncio.run(_measure(gateway, photograph(*size), side))
    name = f"AutoMask, {size[0]}x{size[1]}, {side**2:,} points: "
    figures[1].name = name + figures[1].name
    figures[2].name = name + figures[2].name
    return Result("memory", figures=figures)


async def _measure(gateway: Gateway, image: bytes, points_per_side: int) -> list[Figure]:
    loaded = resident(gateway.pid)
    async with Client(gateway.target) as client:
        side = Side(client, gateway.pid)
        found = await side.automask(image, {"points_per_side": points_per_side})
    kept = resident(gateway.pid)
    return [
        Figure("with the model, after the start", "MiB", [loaded / MIB]),
        Figure("peak above that", "MiB", [(found.peak_bytes - loaded) / MIB]),
        Figure("kept above that", "MiB", [(kept - loaded) / MIB]),
    ]
