"""The use case of putting another version of a model into service without a stop.

A command does it in steps, so that several servers switch together or not at all: all *prepare*,
then all *activate*, then all *drain*, then all *release* the old version.  Before the second step,
*release* of the new version undoes the first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum

from samserve.cache.base import EmbeddingCache
from samserve.engines.base import Engine
from samserve.segmentation.served import find
from samserve.segmentation.warmup import warm_up_version
from samserve.types import ModelInfo, ModelVersion


class Step(Enum):
    """A step of a promotion; see the module."""

    PREPARE = "prepare"
    ACTIVATE = "activate"
    DRAIN = "drain"
    RELEASE = "release"


@dataclass(frozen=True, slots=True, eq=False)
class Promoter:
    """Puts versions into service; ``on_activated`` is called after each activation."""

    engine: Engine
    cache: EmbeddingCache
    on_activated: Callable[[], None] = lambda: None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)

    async def run(self, step: Step, version: ModelVersion) -> ModelInfo:
        """Run one step for a version and return the model as it is in service afterwards.

        Every step may be repeated.  Raises `PromotionRefused`, and `MemoryExhausted` if there is no
        memory for both versions; then the version in service stays.
        """
        model, digest = version.model, version.digest
        find(self.engine.models, model)
        if step is Step.DRAIN:
            # For as long as the longest call: other steps need not wait for it.
            await self.engine.drain(model, digest)
            return self.engine.models[model]
        async with self._lock:
            match step:
                case Step.PREPARE:
                    await self._prepare(version)
                case Step.ACTIVATE:
                    self.engine.activate(model, digest)
                    self.on_activated()
                case Step.RELEASE:
                    await self.engine.release(model, digest)
        return self.engine.models[model]

    async def _prepare(self, version: ModelVersion) -> None:
        """Load a version, and run its new networks once: the first run of a graph is slow."""
        prepared = await self.engine.prepare(version)
        served = self.engine.models[version.model]
        encoder = prepared.encoder_digest != served.encoder_digest
        try:
            await warm_up_version(prepared, self.engine, self.cache, encoder=encoder)
        except BaseException:
            if self.engine.models[version.model].digest != version.digest:
                await self.engine.release(version.model, version.digest)
            raise
