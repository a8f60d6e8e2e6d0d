"""The time and memory that a command has used so far."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

from samserve.system.limits import peak_memory_bytes


class Costs:
    """Measures from its creation; *clock* returns seconds and *peak* bytes."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        peak: Callable[[], int] = peak_memory_bytes,
    ) -> None:
        self._clock, self._peak = clock, peak
        self._start = clock()

    def step(self, text: str) -> str:
        """Return the line of a step that starts now."""
        return f"[{self._elapsed_s():4.0f} s, peak {self._peak() >> 20:5d} MiB] {text}"

    def total(self, folders: Iterable[Path]) -> str:
        """Return the line of a command that ends now and has written *folders*."""
        files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
        written = sum(file.stat().st_size for file in files)
        return (
            f"took {self._elapsed_s():.0f} s, at most {self._peak() >> 20} MiB of memory; "
            f"wrote {written / 2**20:.1f} MiB"
        )

    def _elapsed_s(self) -> float:
        return self._clock() - self._start
