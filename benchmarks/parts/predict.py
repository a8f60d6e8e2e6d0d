"""Predict of one point with a cached embedding, one and three masks, against `segment-anything`.

samserve is called over gRPC and returns run lengths; the others run in their process and return
arrays of bool, without run lengths.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from samserve.client import Client, Embedding, Multimask

from benchmarks.gateways import Gateway, Side, points
from benchmarks.parts import Plan
from benchmarks.photographs import photograph
from benchmarks.process import ReferenceProcess
from benchmarks.results import Comparison, Cost, Latencies, Result
from benchmarks.sam_model import NAME, prepare
from benchmarks.sam_references import OnnxFlow, Torch, overlap

SIZES = ((640, 480), (1800, 1200))
TOY_SIZES = ((160, 120),)
MASKS: Mapping[str, Multimask] = {"one mask": "auto", "three masks": "all"}
TORCH, FLOW = "segment-anything in torch", "segment-anything's ONNX model"
SLEEPING = f"{FLOW}, waiting threads sleep"
CALLS = 6
"""Calls of one side in a block."""


@dataclass
class Cell:
    """One size and number of masks: a comparison with every baseline."""

    name: str
    multimask: Multimask
    comparisons: dict[str, Comparison]
    latencies: Latencies
    masks: int = 0
    equal: dict[str, int] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)


def run(plan: Plan) -> Result:
    """Measure all cells."""
    model, result = prepare(plan.folder, toy=plan.toy), Result("predict")
    with ExitStack() as stack:
        gateway = stack.enter_context(
            Gateway(plan.threads, repository=model.repository, model=NAME)
        )
        flow = partial(OnnxFlow, model, plan.threads)
        loads: Mapping[str, Callable[[], object]] = {
            TORCH: partial(Torch, model),
            FLOW: partial(flow, spinning=True),
            **({} if plan.toy else {SLEEPING: partial(flow, spinning=False)}),
        }
        references = {
            name: stack.enter_context(ReferenceProcess(load, threads=plan.threads))
            for name, load in loads.items()
        }
        for width, height in TOY_SIZES if plan.toy else SIZES:
            asyncio.run(_measure(gateway, references, (width, height), plan, result))
    result.notes.append(
        "Masks of samserve that are equal to those of the baseline to the last pixel, and the "
        "least IoU, are those of all calls."
    )
    return result


async def _measure(
    gateway: Gateway,
    references: Mapping[str, ReferenceProcess],
    size: tuple[int, int],
    plan: Plan,
    result: Result,
) -> None:
    image = photograph(*size)
    async with Client(gateway.target) as client:
        side = Side(client, gateway.pid)
        embedding = await client.embed(image)
        for reference in references.values():
            reference.call("embed", image)
        cells = [
            Cell(
                f"{size[0]}x{size[1]}, {name}",
                multimask,
                {each: Comparison(f"{size[0]}x{size[1]}, {name}", each) for each in references},
                Latencies(f"{size[0]}x{size[1]}, {name}"),
            )
            for name, multimask in MASKS.items()
        ]
        where = points(*size, CALLS * (plan.blocks(12) + 1))
        for block in range(plan.blocks(12) + 1):
            some = where[block * CALLS : (block + 1) * CALLS]
            for cell in cells:
                await _block(cell, side, embedding, references, some, warm=block > 0)
    for cell in cells:
        for name, comparison in cell.comparisons.items():
            equal, least = cell.equal[name], cell.least[name]
            comparison.agreement = f"{equal} of {cell.masks} masks equal, least IoU {least:.4f}"
            result.comparisons.append(comparison)
        result.latencies.append(cell.latencies)


async def _block(
    cell: Cell,
    side: Side,
    embedding: Embedding,
    references: Mapping[str, ReferenceProcess],
    some: Sequence[tuple[float, float]],
    *,
    warm: bool,
) -> None:
    """Call every side once per point, one side after the other; keep the costs if *warm*."""
    ours: list[list[Any]] = []
    costs: list[Cost] = []
    for point in some:
        masks, cost = await side.cost(partial(side.predict, embedding, point, cell.multimask))
        ours.append(masks)
        costs.append(cost)
    if warm:
        cell.masks += sum(map(len, ours))
        cell.latencies.values_ms += [1e3 * each.wall_s for each in costs]
    for name, reference in references.items():
        calls = [reference.call("predict", point, cell.multimask == "auto") for point in some]
        if not warm:
            continue
        comparison = cell.comparisons[name]
        comparison.ours.append(_cost_of(costs))
        comparison.theirs.append(_cost_of([each.cost for each in calls]))
        for masks, call in zip(ours, calls, strict=True):
            equal, least = overlap(masks, call.value.rles)
            cell.equal[name] = cell.equal.get(name, 0) + equal
            cell.least[name] = min(cell.least.get(name, 1.0), least)


def _cost_of(costs: Sequence[Cost]) -> Cost:
    """Return the median time and the mean CPU of the calls of a block."""
    wall = float(np.median([each.wall_s for each in costs]))
    return Cost(wall, float(np.mean([each.cpu_s for each in costs])))
