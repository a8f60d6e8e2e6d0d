"""The use cases on a test's engine, without a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
from samserve.cache.local.cache import LocalCache
from samserve.context import RequestContext
from samserve.engines.base import Engine
from samserve.images import ImageLimits
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask.generator import AutoMasker
from samserve.segmentation.automask.run_size import RunSize
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.encode import EncodeJobs
from samserve.segmentation.predict import Predictor
from samserve.segmentation.prefetch import PrefetchQueue
from samserve.segmentation.sources import ImageSource
from samserve.types import RawImage, Size


class RecordingWorkers(Workers):
    """Two threads per pool; ``calls`` has the names of the functions that ran in them."""

    def __init__(self) -> None:
        super().__init__(2)
        self.calls: list[str] = []

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self.calls.append(getattr(getattr(function, "func", function), "__name__", ""))
        return await super().run(context, function, *args, **kwargs)


E = TypeVar("E", bound=Engine)


@dataclass
class UseCases(Generic[E]):
    """The use cases as `samserve.app` builds them, with parts that a test may replace."""

    engine: E
    workers: Workers = field(default_factory=RecordingWorkers)
    cache: LocalCache = field(default_factory=lambda: LocalCache(64 << 20, ttl_s=600))
    max_prompts_per_batch: int = 8

    def __post_init__(self) -> None:
        limits = ImageLimits(10**8, 10**5)
        most = self.max_prompts_per_batch
        common = (self.engine, self.cache, self.workers, limits)
        bound = TenantLimit(1 << 30, "prefetches", "prefetch")
        prefetches = PrefetchQueue(bound, bound, lambda outcome: None)
        self.embeddings = EmbeddingService(*common, EncodeJobs(*common, 600), prefetches)
        self.predictor = Predictor(self.embeddings, self.engine, self.workers, most)
        # However long a run takes here, it has that many prompts.
        run_size = RunSize(most, target_s=1e9, first=most)
        self.automasker = AutoMasker(self.embeddings, self.engine, self.workers, run_size)

    async def aclose(self) -> None:
        """Release memory and threads."""
        await self.cache.aclose()
        self.workers.close()


def image_of(pixels: np.ndarray) -> ImageSource:
    """Return uint8 RGB ``[h, w, 3]`` as a raw image."""
    return ImageSource(RawImage(pixels.tobytes(), Size(*pixels.shape[:2])))


def blank(height: int = 20, width: int = 30, grey: int = 0) -> ImageSource:
    """Return an image of one colour."""
    return image_of(np.full((height, width, 3), grey, np.uint8))
