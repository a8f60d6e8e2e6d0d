"""AutoMask with 256 points and the decoder of SAM, against the generator of `segment-anything`.

Predicted IoU thresholds are chosen from the distribution over the grid points, so that a share of
them has a mask that passes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from samserve.client import Client

from benchmarks.gateways import AutoMasked, Gateway, Side
from benchmarks.machine import peak, reset_peak, resident
from benchmarks.parts import Plan
from benchmarks.photographs import coins, photograph
from benchmarks.process import ReferenceProcess, Timed
from benchmarks.results import Comparison, Result
from benchmarks.sam_model import NAME, prepare
from benchmarks.sam_references import PlainGraph, Torch, agreement

SIZES = ((1800, 1200), (384, 303))
SHARES = (0.5, 0.2, 0.8)
ROUNDS = 3
POINTS_PER_SIDE = 16
TORCH, PLAIN = "generator in torch", "generator on a plain ONNX graph"


def run(plan: Plan) -> Result:
    """Measure both images; at the first share against all baselines, with most rounds."""
    model, result = prepare(plan.folder, toy=plan.toy), Result("automask")
    sizes, side = (((160, 120),), 6) if plan.toy else (SIZES, POINTS_PER_SIDE)
    loads: Mapping[str, Callable[[], object]] = {
        TORCH: partial(Torch, model),
        PLAIN: partial(PlainGraph, model, plan.threads),
    }
    with ExitStack() as stack:
        gateway = stack.enter_context(
            Gateway(plan.threads, repository=model.repository, model=NAME)
        )
        references = {
            name: stack.enter_context(ReferenceProcess(load, threads=plan.threads))
            for name, load in loads.items()
        }
        base = resident(gateway.pid)
        for width, height in sizes:
            image = coins() if (width, height) == SIZES[1] else photograph(width, height)
            best = references[PLAIN].call("best_iou", image, side).value
            for share in SHARES:
                threshold = float(np.round(np.quantile(best, 1 - share), 4))
                options = {"points_per_side": side, "pred_iou_thresh": threshold}
                passing = f"{np.mean(best > threshold):.0%} of the points"
                main = share == SHARES[0]
                chosen = references if main else {PLAIN: references[PLAIN]}
                compared = Compared(f"{width}x{height}, {passing}", image, options, chosen, base)
                asyncio.run(compared.measure(gateway, plan.blocks(ROUNDS) if main else 1))
                result.comparisons += compared.comparisons.values()
    result.notes.append(
        "The share is that of the points with a mask whose predicted IoU passes the threshold; "
        "the other options are the defaults. Peak memory is above that of the process with its "
        "model; for samserve, above that after its warm-up."
    )
    return result


class Compared:
    """One image and one threshold: a comparison with every baseline."""

    def __init__(
        self,
        name: str,
        image: bytes,
        options: Mapping[str, Any],
        references: Mapping[str, ReferenceProcess],
        base_bytes: int,
    ) -> None:
        self.base_bytes = base_bytes
        self.image, self.options, self.references = image, options, references
        self.comparisons = {each: Comparison(name, each) for each in references}

    async def measure(self, gateway: Gateway, rounds: int) -> None:
        """Alternate between all sides."""
        async with Client(gateway.target) as client:
            side = Side(client, gateway.pid)
            for _ in range(rounds):
                ours = await side.automask(self.image, self.options)
                for name, reference in self.references.items():
                    reset_peak(reference.pid)
                    theirs = reference.call("automask", self.image, self.options)
                    self._add(name, ours, theirs)

    def _add(self, name: str, ours: AutoMasked, theirs: Timed) -> None:
        comparison, reference = self.comparisons[name], self.references[name]
        comparison.ours.append(ours.cost)
        comparison.theirs.append(theirs.cost)
        above = peak(reference.pid) - reference.bytes_loaded
        comparison.our_peak_bytes = max(
            comparison.our_peak_bytes, ours.peak_bytes - self.base_bytes
        )
        comparison.their_peak_bytes = max(comparison.their_peak_bytes, above)
        comparison.agreement = agreement(ours.rles, theirs.value.rles)
