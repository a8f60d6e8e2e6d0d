"""One inference per model before the gateway is ready, so the first call is not slow."""

from __future__ import annotations

from functools import partial

import numpy as np

from samserve.cache.base import EmbeddingCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import DeadlineExceeded, EngineUnavailable, Overloaded, WeightsChanged
from samserve.models import families
from samserve.security.principal import WARM_UP
from samserve.segmentation.prompts import grid_batch
from samserve.system.startup_retry import StartupRetry
from samserve.types import EmbeddingFacts, EmbeddingKey, Size

# Errors of an engine that is slow, restarting or busy.  Waiting helps against no others.
_TRANSIENT_ERRORS = (EngineUnavailable, Overloaded, DeadlineExceeded)


async def warm_up(engine: Engine, cache: EmbeddingCache, retry: StartupRetry) -> None:
    """Encode a black image with every model and decode one point prompt on it.

    Raises the engine's error if it persists beyond the time limit of *retry*: a service that
    cannot run inferences does not become ready.
    """
    for name in list(engine.models):
        first = partial(_try_model, name, engine, cache)
        await retry.run(first, "waiting for the first inference", _TRANSIENT_ERRORS)


async def _try_model(name: str, engine: Engine, cache: EmbeddingCache) -> None:
    try:
        await _warm_up_model(name, engine, cache)
    except WeightsChanged as error:
        # Retrying helps while a model is being loaded, but not if the digest is wrong.
        raise WeightsChanged(
            f"{error}; if this persists, a config.pbtxt of {name!r} names another digest than its "
            "graphs; to correct it, run: samserve models upgrade REPOSITORY"
        ) from error


async def _warm_up_model(name: str, engine: Engine, cache: EmbeddingCache) -> None:
    model = engine.models.get(name)
    if model is None:
        raise EngineUnavailable(f"model {name!r} is no longer served")
    context = RequestContext(WARM_UP)
    family = families.of(model)
    transform = family.transform(Size(model.image_size, model.image_size), model)
    facts = EmbeddingFacts.of(transform.image, model)
    key = EmbeddingKey(context.tenant, model.digest)
    slot = await cache.reserve(key, facts, model.embedding, transient=True)
    try:
        blank = np.zeros((transform.model_side, transform.model_side, 3), dtype=np.uint8)
        valid = None if family.fills_frame else transform.resized
        await engine.encode(model.name, EncoderInput(blank, valid), slot, context)
        centre = np.array([[transform.image.width / 2, transform.image.height / 2]])
        point_prompt = grid_batch(centre, family, transform)
        await engine.decode(model.name, slot.as_embedding(), point_prompt, context)
    finally:
        await cache.discard(slot)
