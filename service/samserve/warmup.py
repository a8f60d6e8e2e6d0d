"""One inference before the first call: readiness that has been tried, and no slow first click."""

from __future__ import annotations

import numpy as np

from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine, PromptBatch
from samserve.principal import WARM_UP
from samserve.stores.base import EmbeddingStore
from samserve.types import EmbeddingFacts, EmbeddingKey, ModelInfo, Size


async def warm_up(engine: Engine, store: EmbeddingStore) -> None:
    """Encode an empty picture with every model and decode one click on it.

    Raises what the engine raises: a service that cannot infer does not become ready.
    """
    for model in engine.models.values():
        await _warm_up_model(model, engine, store)


async def _warm_up_model(model: ModelInfo, engine: Engine, store: EmbeddingStore) -> None:
    context = RequestContext(WARM_UP)
    side = model.image_size
    facts = EmbeddingFacts.of(Size(side, side), model)
    key = EmbeddingKey(context.tenant, model.digest)
    slot = await store.reserve(key, facts, model.embedding, transient=True)
    try:
        blank = EncoderInput(np.zeros((side, side, 3), dtype=np.uint8), Size(side, side))
        await engine.encode(model.name, blank, slot, context)
        click = PromptBatch(
            point_coords=np.array([[[side / 2, side / 2], [0, 0]]], dtype=np.float32),
            point_labels=np.array([[1, -1]], dtype=np.float32),
            mask_input=np.zeros((0, model.mask_size, model.mask_size), dtype=np.float32),
        )
        await engine.decode(model.name, slot.as_embedding(), click, context)
    finally:
        await store.discard(slot)
