"""One inference per model before the gateway is ready, so the first call is not slow."""

from __future__ import annotations

from functools import partial

import numpy as np

from samserve.cache.base import EmbeddingCache
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import DeadlineExceeded, EngineUnavailable, Overloaded, WeightsChanged
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.security.principal import WARM_UP
from samserve.segmentation.prompts import grid_batch
from samserve.system.startup_retry import StartupRetry
from samserve.types import EmbeddingFacts, EmbeddingKey, ModelInfo, Size

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
    await warm_up_version(model, engine, cache)


async def warm_up_version(
    model: ModelInfo, engine: Engine, cache: EmbeddingCache, *, encoder: bool = True
) -> None:
    """Encode a black image with one version of a model and decode one point prompt on it.

    Without *encoder*, decode an embedding of zeros.
    """
    context = RequestContext(WARM_UP)
    facts = EmbeddingFacts.of(Size(model.image_size, model.image_size), model)
    key = EmbeddingKey(context.tenant, model.digest)
    slot = await cache.reserve(key, facts, model.embedding, transient=True)
    try:
        await _run(model, engine, slot, context, encoder=encoder)
    finally:
        await cache.discard(slot)


async def _run(
    model: ModelInfo, engine: Engine, slot: Slot, context: RequestContext, *, encoder: bool
) -> None:
    family = families.of(model)
    transform = family.transform(Size(model.image_size, model.image_size), model)
    blank = np.zeros((transform.model_side, transform.model_side, 3), dtype=np.uint8)
    valid = None if family.fills_frame else transform.resized
    centre = np.array([[transform.image.width / 2, transform.image.height / 2]])
    point_prompt = grid_batch(centre, family, transform)
    with engine.using(model, context):
        if encoder:
            await engine.encode(model.name, EncoderInput(blank, valid), slot, context)
        else:
            for tensor in slot.tensors.values():
                tensor[...] = 0
        await engine.decode(model.name, slot.as_embedding(), point_prompt, context)
