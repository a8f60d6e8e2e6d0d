"""One inference before the first call: readiness that has been tried, and no slow first click."""

from __future__ import annotations

from functools import partial

import numpy as np

from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import DeadlineExceeded, EngineUnavailable, Overloaded, WeightsChanged
from samserve.models import families
from samserve.security.principal import WARM_UP
from samserve.segmentation.prompts import grid_batch
from samserve.stores.base import EmbeddingStore
from samserve.system.startup_retry import StartupRetry
from samserve.types import EmbeddingFacts, EmbeddingKey, Size

# What an engine says that is slow, restarts or is busy; to wait helps nothing else.
_MAY_PASS = (EngineUnavailable, Overloaded, DeadlineExceeded)


async def warm_up(engine: Engine, store: EmbeddingStore, retry: StartupRetry) -> None:
    """Encode a black image with every model and decode one click on it.

    Raises what the engine raises, if it goes on for longer than *retry* gives it: a service that
    cannot infer does not become ready.
    """
    for name in list(engine.models):
        first = partial(_try_model, name, engine, store)
        await retry.until_done(first, "waiting for the first inference", _MAY_PASS)


async def _try_model(name: str, engine: Engine, store: EmbeddingStore) -> None:
    try:
        await _warm_up_model(name, engine, store)
    except WeightsChanged as error:
        # Time helps against a load that is under way, and against the other cause nothing does.
        raise WeightsChanged(
            f"{error}; if this goes on, a config.pbtxt of {name!r} names another digest than its "
            "graphs: samserve models upgrade REPOSITORY makes them agree"
        ) from error


async def _warm_up_model(name: str, engine: Engine, store: EmbeddingStore) -> None:
    model = engine.models.get(name)
    if model is None:
        raise EngineUnavailable(f"model {name!r} is not served any more")
    context = RequestContext(WARM_UP)
    family = families.of(model)
    transform = family.transform(Size(model.image_size, model.image_size), model)
    facts = EmbeddingFacts.of(transform.image, model)
    key = EmbeddingKey(context.tenant, model.digest)
    slot = await store.reserve(key, facts, model.embedding, transient=True)
    try:
        blank = np.zeros((transform.model_side, transform.model_side, 3), dtype=np.uint8)
        await engine.encode(model.name, EncoderInput(blank, transform.resized), slot, context)
        centre = np.array([[transform.image.width / 2, transform.image.height / 2]])
        click = grid_batch(centre, family, transform)
        await engine.decode(model.name, slot.as_embedding(), click, context)
    finally:
        await store.discard(slot)
