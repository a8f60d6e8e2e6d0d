"""The use case Embed: from a picture to a leased embedding, encoding it at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from samserve import identity, imaging
from samserve.context import RequestContext, StageClock
from samserve.core import geometry
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import EmbeddingNotFound, InvalidRequest, ModelNotFound
from samserve.flight import SingleFlight
from samserve.principal import Permission
from samserve.prompting import Frames
from samserve.stores.base import EmbeddingStore, Slot
from samserve.types import (
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    EncodedImage,
    Image,
    ImageDigest,
    ModelInfo,
    RawImage,
    Size,
    UInt8Array,
)
from samserve.workers import Workers


@dataclass(frozen=True, slots=True)
class ById:
    """A picture named by the id of its stored embedding."""

    embedding_id: str


@dataclass(frozen=True, slots=True)
class ByImage:
    """A picture given as such."""

    image: Image


Source = ById | ByImage
Check = Callable[[Size, ModelInfo], None]


@dataclass(frozen=True, slots=True, eq=False)
class Leased:
    """An embedding in use: its id, the model that decodes it and whether it was there before."""

    embedding_id: str
    embedding: Embedding
    model: ModelInfo
    cached: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Encoded:
    embedding: Embedding
    clock: StageClock
    cached: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One picture to be encoded under one model."""

    key: EmbeddingKey
    image: EncodedImage | RawImage
    model: ModelInfo


class Embedder:
    """Finds embeddings in the store and makes those that are missing."""

    def __init__(
        self,
        engine: Engine,
        store: EmbeddingStore,
        workers: Workers,
        limits: imaging.ImageLimits,
        encode_deadline_s: float,
    ) -> None:
        self.engine = engine
        self.store = store
        self.workers = workers
        self.limits = limits
        self._encode_deadline_s = encode_deadline_s
        self._flights: SingleFlight[EmbeddingKey, _Encoded] = SingleFlight()

    def model(self, name: str) -> ModelInfo:
        """Find a model; the empty name means the default.  Raises `ModelNotFound`."""
        models = self.engine.models
        if not name:
            return next(iter(models.values()))
        if name not in models:
            raise ModelNotFound(
                f"no model {name[:64]!r} is served; there are: {', '.join(models)}",
                metadata={"model": name[:64], "served": ",".join(models)},
            )
        return models[name]

    @asynccontextmanager
    async def lease(
        self,
        source: Source,
        model_name: str,
        context: RequestContext,
        *,
        check: Check = lambda size, model: None,
        renew: bool = False,
    ) -> AsyncIterator[Leased]:
        """Hold the embedding of *source*, encoding it first if need be.

        *check* sees the image's size and the model before anything runs and may raise.  With
        *renew* the time to live of a stored embedding starts again.
        """
        async with AsyncExitStack() as held:
            if isinstance(source, ById):
                leased = await self._by_id(held, source.embedding_id, model_name, context)
                check(leased.embedding.facts.image_size, leased.model)
            else:
                leased = await self._by_image(
                    held, source.image, self.model(model_name), context, check, renew
                )
            yield leased

    async def delete(self, embedding_id: str, context: RequestContext) -> bool:
        """Forget an embedding of the caller's tenant; False if there was none."""
        return await self.store.delete(EmbeddingKey(context.tenant, embedding_id))

    async def _by_id(
        self,
        held: AsyncExitStack,
        embedding_id: str,
        model_name: str,
        context: RequestContext,
    ) -> Leased:
        key = EmbeddingKey(context.tenant, embedding_id)
        with context.clock.stage("cache_get"):
            embedding = await held.enter_async_context(self.store.lease(key))
        model = self._model_of(embedding.facts, embedding_id)
        if model_name and self.model(model_name) != model:
            raise InvalidRequest(
                "model",
                f"the embedding was made by {model.name!r}; leave this empty",
                metadata={"model": model.name},
            )
        return Leased(embedding_id, embedding, model, cached=True)

    def _model_of(self, facts: EmbeddingFacts, embedding_id: str) -> ModelInfo:
        model = self.engine.models.get(facts.model_name)
        if model is None or model.digest != facts.model_digest:
            # A client that is told of a miss embeds again, with the model that is there now.
            raise EmbeddingNotFound(
                "the model that made the embedding is not served any more; embed again",
                metadata={"embedding_id": embedding_id},
            )
        return model

    async def _by_image(
        self,
        held: AsyncExitStack,
        image: Image,
        model: ModelInfo,
        context: RequestContext,
        check: Check,
        renew: bool,
    ) -> Leased:
        with context.clock.stage("hash"):
            embedding_id = await self.workers.run(context, identity.embedding_id, image, model)
        key = EmbeddingKey(context.tenant, embedding_id)
        try:
            with context.clock.stage("cache_get"):
                embedding = await held.enter_async_context(self.store.lease(key, renew=renew))
        except EmbeddingNotFound:
            if isinstance(image, ImageDigest):
                raise
        else:
            check(embedding.facts.image_size, model)
            return Leased(embedding_id, embedding, model, cached=True)
        context.principal.require(Permission.EMBED)
        self.store.check_room(context.tenant, model.embedding)
        size = await self.workers.run(context, imaging.probe, image, self.limits)
        context.allowance.check_image(size.pixels)
        check(size, model)
        encoded = await self._encode_once(held, _Job(key, image, model), context)
        return Leased(embedding_id, encoded.embedding, model, encoded.cached)

    async def _encode_once(
        self, held: AsyncExitStack, job: _Job, context: RequestContext
    ) -> _Encoded:
        joined = self._flights.join(job.key, lambda: self._encode(job, context))
        waiting = StageClock()
        # The work has a clock of its own; this is what a deadline that strikes now is told of.
        context.clock.current = "encode"
        with waiting.stage("join"):
            encoded, leads = await held.enter_async_context(joined)
        # Who began the work is told its stages, who joined it how long that took.
        context.clock.merge(encoded.clock if leads else waiting)
        return encoded

    @asynccontextmanager
    async def _encode(self, job: _Job, caller: RequestContext) -> AsyncIterator[_Encoded]:
        """Encode, publish and hold; runs on behalf of everybody who joins, not of *caller*."""
        async with AsyncExitStack() as held:
            clock, cached = StageClock(), True
            try:
                # *caller* met a miss, then looked at its picture: another flight may have landed.
                lease = self.store.lease(job.key, again=True)
                embedding = await held.enter_async_context(lease)
            except EmbeddingNotFound:
                clock, cached = await self._encode_and_publish(job, caller), False
                embedding = await held.enter_async_context(self.store.lease(job.key, again=True))
            yield _Encoded(embedding, clock, cached)

    async def _encode_and_publish(self, job: _Job, caller: RequestContext) -> StageClock:
        """Return what each stage took."""
        context = RequestContext(
            principal=caller.principal,
            allowance=caller.allowance,
            request_id=caller.request_id,
            deadline=caller.now() + self._encode_deadline_s,
            priority=caller.priority,
        )
        with context.clock.stage("decode_image"):
            pixels = await self.workers.run(context, imaging.decode, job.image, self.limits)
        size = Size(*pixels.shape[:2])
        facts = EmbeddingFacts(size, job.model.name, job.model.digest)
        slot = await self.store.reserve(job.key, facts, job.model.embedding)
        try:
            await self.encode_pixels(pixels, job.model, slot, context)
        except BaseException:
            await self.store.discard(slot)
            raise
        await self.store.publish(slot)
        return context.clock

    async def encode_pixels(
        self, pixels: UInt8Array, model: ModelInfo, slot: Slot, context: RequestContext
    ) -> None:
        """Resize uint8 RGB ``[h, w, 3]`` into the model frame and encode it into *slot*."""
        frames = Frames.of(Size(*pixels.shape[:2]), model)
        with context.clock.stage("resize"):
            placed = await self.workers.run(
                context, _place, pixels, frames.resized, model.image_size
            )
        with context.clock.stage("encode"):
            await self.engine.encode(
                model.name, EncoderInput(placed, frames.resized), slot, context
            )


def _place(pixels: UInt8Array, resized: Size, side: int) -> UInt8Array:
    return geometry.place_top_left(geometry.resize_image(pixels, resized), side)
