"""Gateways with the ONNX engine, of this checkout or of an earlier one, and what a call costs."""

from __future__ import annotations

import os
import subprocess
import tarfile
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from types import MappingProxyType
from typing import Any

from samserve.client import Client, Embedding, Multimask, Prompt

from benchmarks.common import cpu_s
from benchmarks.machine import ROOT, peak, reset_peak, resident
from benchmarks.results import Cost
from harness.gateway import GatewayServer

PREVIOUS = "bfa1e5526be9e853cd67e34b52a92f3cca2d816e"
"""The last commit whose decoders did every operation for every prompt."""

DEFAULT_MODEL = "sam_tiny"


class Gateway(GatewayServer):
    """A gateway of a checkout, in a process of its own, with the settings of a deployment."""

    def __init__(
        self,
        threads: int,
        *,
        repository: Path | None = None,
        model: str = "",
        tree: Path = ROOT,
        env: Mapping[str, str] | None = None,
        more: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        """Configure the gateway; *more* are further settings."""
        settings: dict[str, object] = {
            "engine.kind": "onnx",
            "engine.threads": threads,
            "log.level": "warning",
            "engine.model_repository": repository or tree / "model_repository",
            "engine.default_model": model or DEFAULT_MODEL,
            **more,
        }
        super().__init__(settings)
        self._env = {**os.environ, **(env or {}), "PYTHONPATH": f"{tree / 'service'}:{tree}"}


@dataclass
class Side:
    """A gateway and its client."""

    client: Client
    pid: int

    async def cost(self, call: Callable[[], Awaitable[Any]]) -> tuple[Any, Cost]:
        """Await a call; return its result, and its cost in the process of the gateway."""
        cpu, started = cpu_s(self.pid), time.perf_counter()
        result = await call()
        wall = time.perf_counter() - started
        return result, Cost(wall, cpu_s(self.pid) - cpu)

    async def automask(self, image: bytes, options: Mapping[str, Any]) -> AutoMasked:
        """Segment everything in an image that has no embedding yet."""
        before = resident(self.pid)
        reset_peak(self.pid)
        result, cost = await self.cost(lambda: self.client.automask_all(image, **options))
        highest = peak(self.pid)
        await self.client.delete_embedding(result.summary.embedding)
        return AutoMasked([each.mask.rle for each in result.records], cost, before, highest)

    async def predict(
        self, embedding: Embedding, point: tuple[float, float], multimask: Multimask = "auto"
    ) -> list[Any]:
        """Return the masks of a point."""
        prompts = [Prompt(points=[point])]
        prediction = await self.client.predict(embedding, prompts, multimask=multimask)
        return [mask.rle for mask in prediction.results[0]]


@dataclass(frozen=True)
class AutoMasked:
    """The masks and the cost of an AutoMask; resident memory before it, and at its peak."""

    rles: list[Any]
    cost: Cost
    before_bytes: int
    peak_bytes: int


def previous(folder: Path) -> Path | None:
    """Return a copy of the checkout at `PREVIOUS`; None without its history."""
    target = folder / f"previous-{PREVIOUS[:12]}"
    if target.exists():
        return target
    command = ["git", "archive", PREVIOUS, "service", "model_repository"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if run.returncode:
        return None
    with tarfile.open(fileobj=BytesIO(run.stdout)) as archive:
        archive.extractall(target.with_suffix(".new"), filter="data")
    target.with_suffix(".new").rename(target)
    return target


def points(width: int, height: int, count: int) -> list[tuple[float, float]]:
    """Return *count* points spread over an image, in pixels (the R2 sequence)."""
    ratio = 1.32471795724474602596
    return [
        ((0.5 + index / ratio) % 1 * width, (0.5 + index / ratio**2) % 1 * height)
        for index in range(count)
    ]
