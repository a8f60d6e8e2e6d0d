"""AutoMask of the default model with 1,024 points, against the previous version of samserve."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from samserve.client import Client

from benchmarks.gateways import Gateway, Side, previous
from benchmarks.machine import resident
from benchmarks.parts import Plan
from benchmarks.photographs import coins
from benchmarks.results import Comparison, Result
from benchmarks.sam_references import agreement

ROUNDS = 3


def run(plan: Plan) -> Result:
    """Alternate between both versions, each with its own export of the model."""
    result = Result("default")
    tree = previous(plan.folder)
    if tree is None:
        result.notes.append("Not measured: this checkout has no history.")
        return result
    with ExitStack() as stack:
        gateways = [
            stack.enter_context(Gateway(plan.threads)),
            stack.enter_context(Gateway(plan.threads, tree=tree)),
        ]
        asyncio.run(_measure(gateways, plan, result))
    return result


async def _measure(gateways: list[Gateway], plan: Plan, result: Result) -> None:
    size, side = ((384, 303), 6) if plan.toy else ((1800, 1200), 32)
    image = coins(*size)
    comparison = Comparison(f"{size[0]}x{size[1]}, {side**2:,} points", "previous version")
    async with Client(gateways[0].target) as new, Client(gateways[1].target) as old:
        sides = (Side(new, gateways[0].pid), Side(old, gateways[1].pid))
        bases = [resident(each.pid) for each in sides]
        for _ in range(plan.blocks(ROUNDS)):
            ours, theirs = [await each.automask(image, {"points_per_side": side}) for each in sides]
            comparison.ours.append(ours.cost)
            comparison.theirs.append(theirs.cost)
            comparison.our_peak_bytes = max(comparison.our_peak_bytes, ours.peak_bytes - bases[0])
            comparison.their_peak_bytes = max(
                comparison.their_peak_bytes, theirs.peak_bytes - bases[1]
            )
        comparison.agreement = agreement(ours.rles, theirs.rles)
    result.comparisons.append(comparison)
