"""The device: times, peak memory, and what it reaches in a matrix product and in a copy."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call: median, least and most; peak memory above the start in MiB."""

    median: float
    low: float
    high: float
    calls: int
    peak_mib: float | None


@dataclass
class Device:
    """A device, and the rates that were measured on it.

    ``rates`` are operations per second by data type, ``bandwidth`` bytes read and written per
    second.  ``seconds`` limits how long one call is repeated.
    """

    name: str
    seconds: float = 2.0
    rates: dict[str, float] = field(default_factory=dict)
    bandwidth: float = 0.0

    @property
    def is_cuda(self) -> bool:
        """Return whether it is a GPU."""
        return self.name.startswith("cuda")

    def title(self) -> str:
        """Return the device in words."""
        return torch.cuda.get_device_name() if self.is_cuda else "CPU"

    def synchronise(self) -> None:
        """Wait until everything that was started has ended."""
        if self.is_cuda:
            torch.cuda.synchronize()

    def free(self) -> None:
        """Return unused memory to the device."""
        if self.is_cuda:
            torch.cuda.empty_cache()

    def measure(self, call: Callable[[], object], *, calls: int = 20) -> Timing:
        """Time *call*: at most so many calls and ``seconds``, at least three; two for warm-up."""
        call()
        self.synchronise()
        before = time.perf_counter()
        base = self._reset_peak()
        call()
        self.synchronise()
        peak = self._peak(base)
        each = max(time.perf_counter() - before, 1e-6)
        count = max(3, min(calls, int(self.seconds / each)))
        times = self._events(call, count) if self.is_cuda else _walls(call, count)
        return Timing(statistics.median(times), min(times), max(times), count, peak)

    def probe(self, side: int, dtypes: list[str]) -> None:
        """Measure the rates with products of *side* x *side*, and with a copy."""
        for name in dtypes:
            left = torch.randn(side, side, device=self.name).to(DTYPES[name])
            timing = self.measure(lambda left=left: left @ left)  # type: ignore[misc]
            self.rates[name] = 2 * side**3 / timing.median * 1e3
        # More than any cache holds; on a CPU at toy size it may be less.
        source = torch.zeros(16 * side * side, device=self.name)
        target = torch.empty_like(source)
        timing = self.measure(lambda: target.copy_(source))
        self.bandwidth = 2 * source.numel() * source.element_size() / timing.median * 1e3

    def _events(self, call: Callable[[], object], count: int) -> list[float]:
        pairs = []
        for _ in range(count):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            pairs.append((start, end))
        self.synchronise()
        return [start.elapsed_time(end) for start, end in pairs]

    def _reset_peak(self) -> int:
        if not self.is_cuda:
            return 0
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def _peak(self, base: int) -> float | None:
        return (torch.cuda.max_memory_allocated() - base) / 2**20 if self.is_cuda else None


def _walls(call: Callable[[], object], count: int) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1e3)
    return times
