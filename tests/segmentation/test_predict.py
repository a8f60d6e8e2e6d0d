from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from samserve.context import RequestContext
from samserve.core import rle
from samserve.engines.fake import FakeEngine
from samserve.images import ImageLimits
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.embed import ByImage, Embedder
from samserve.segmentation.predict import PredictOptions, Predictor
from samserve.stores.local.store import MemoryStore
from samserve.types import BinaryMask, Prompt, RawImage, Size


class Counting(Workers):
    """Counts what is run in threads."""

    def __init__(self) -> None:
        super().__init__(1)
        self.ran: Counter[str] = Counter()

    async def run(
        self, context: RequestContext, function: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        self.ran[getattr(getattr(function, "func", function), "__name__", "")] += 1
        return await super().run(context, function, *args, **kwargs)


async def test_large_masks_are_read_one_by_one_so_that_others_get_their_turn() -> None:
    workers = Counting()
    store = MemoryStore(8 << 20, 60)
    embedder = Embedder(FakeEngine(), store, workers, ImageLimits(10**6, 10**3), 60)
    picture = RawImage(np.zeros((40, 60, 3), np.uint8).tobytes(), Size(40, 60))
    mask = np.zeros((40, 60), bool)
    mask[10:30, 10:40] = True
    prompts = tuple(Prompt(mask=BinaryMask(rle.encode(mask))) for _ in range(3))

    answer = await Predictor(embedder, 16).predict(
        ByImage(picture), "", prompts, PredictOptions(), RequestContext()
    )
    workers.close()

    assert len(answer.results) == 3
    assert workers.ran["with_logits"] == 3
