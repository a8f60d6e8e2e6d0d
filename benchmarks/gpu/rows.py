"""What is measured, next to the lower bounds of the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu.device import Device, Timing


@dataclass
class Row:
    """A variant of a network, or a note on why it was not measured.

    ``tflop`` is the arithmetic of the plain variant, ``gib`` the least traffic of memory, both per
    call; ``error`` and ``signs`` compare with the plain variant in fp32: relative L2, and the share
    of values with the same sign.
    """

    part: str
    network: str
    variant: str
    dtype: str
    prompts: int | None = None
    timing: Timing | None = None
    tflop: float | None = None
    gib: float | None = None
    error: float | None = None
    signs: float | None = None
    note: str = ""

    def shares(self, device: Device) -> dict[str, float | None]:
        """Return the achieved TFLOP/s, the bounds in milliseconds, and the larger one's share."""
        rate = device.rates.get(self.dtype)
        arithmetic = self.tflop * 1e15 / rate if self.tflop and rate else None
        memory = self.gib * 2**30 / device.bandwidth * 1e3 if self.gib else None
        bound = max(arithmetic or 0.0, memory or 0.0)
        milliseconds = self.timing.median if self.timing else None
        return {
            "achieved_tflops": self.tflop / milliseconds * 1e3
            if self.tflop and milliseconds
            else None,
            "arithmetic_bound_ms": arithmetic,
            "memory_bound_ms": memory,
            "share_of_bound": bound / milliseconds if bound and milliseconds else None,
        }


def operations(call: Any) -> float:
    """Return the 10^12 operations of products and convolutions of a call."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops() / 1e12


def compare(row: Row, found: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
    """Set the error of a row, over all tensors; for masks, which come first, the signs too."""
    squares = [
        ((ours.float() - theirs).square().sum(), theirs.square().sum())
        for ours, theirs in zip(found, expected, strict=True)
    ]
    row.error = max(float((wrong / right).sqrt()) for wrong, right in squares)
    if found[0].ndim == 5:
        row.signs = float(((found[0] > 0) == (expected[0] > 0)).float().mean())
