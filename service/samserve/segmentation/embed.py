"""The use case Embed: from a picture to a leased embedding, encoding it at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from samserve import images
from samserve.context import Priority, RequestContext
from samserve.engines.base import Engine
from samserve.errors import (
    EmbeddingNotFound,
    InvalidRequest,
    ModelNotFound,
    StoreUnavailable,
    WeightsChanged,
)
from samserve.scheduling.thread_pools import Workers
from samserve.security.principal import Permission
from samserve.segmentation import ids
from samserve.segmentation.encode import Encoder, Job
from samserve.segmentation.prefetch import Prefetches
from samserve.stores.base import EmbeddingStore, not_found
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
)


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

# Of an image in one call.  Two servers of different weights behind one name of Triton can go on
# contradicting each other for as long as both are there.
_MOST_ENCODINGS = 3


@dataclass(frozen=True, slots=True, eq=False)
class Leased:
    """An embedding in use: its id, the model that decodes it and whether it was there before."""

    embedding_id: str
    embedding: Embedding
    model: ModelInfo
    cached: bool


@dataclass(frozen=True, slots=True)
class Pending:
    """An embedding that is being made, without anybody waiting for it."""

    embedding_id: str
    image_size: Size
    model: ModelInfo


class Embedder:
    """Finds embeddings in the store and makes those that are missing."""

    def __init__(
        self,
        engine: Engine,
        store: EmbeddingStore,
        workers: Workers,
        limits: images.ImageLimits,
        encode_deadline_s: float,
        prefetches: Prefetches | None = None,
    ) -> None:
        self.engine = engine
        self.store = store
        self.workers = workers
        self.limits = limits
        self.encoder = Encoder(engine, store, workers, limits, encode_deadline_s)
        self._prefetches = prefetches or Prefetches()
        # Those that wait for their turn, or are being made.
        self._prefetched: dict[EmbeddingKey, Job] = {}

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
        durable: bool = False,
    ) -> AsyncIterator[Leased]:
        """Hold the embedding of *source*, encoding it first if need be.

        *check* sees the image's size and the model before anything runs and may raise.  With
        *renew* the time to live of a stored embedding starts again.  With *durable*, see
        `EmbeddingStore.lease`.

        If the weights of the model are replaced meanwhile, an image is encoded again.  Raises
        `WeightsChanged` if they are not known yet, or if that happens within the block, and
        `EmbeddingNotFound` for an embedding, given by its id, whose weights are gone.
        """
        leased: Leased | None = None
        try:
            async with AsyncExitStack() as held:
                if isinstance(source, ById):
                    leased = await self._by_id(held, source.embedding_id, model_name, context)
                    check(leased.embedding.facts.image_size, leased.model)
                else:
                    leased = await self._by_image(
                        held, source.image, model_name, context, check, renew
                    )
                if durable:
                    leased = await self._durable(held, leased, context)
                yield leased
        except WeightsChanged:
            if isinstance(source, ById):
                self._check_still_served(source, leased, context)
            raise

    def _check_still_served(
        self, source: ById, leased: Leased | None, context: RequestContext
    ) -> None:
        """Raise `EmbeddingNotFound` if calls with this id will not succeed again."""
        if leased is None:
            # It was being made, and will not be.
            raise not_found(EmbeddingKey(context.tenant, source.embedding_id)) from None
        self._model_of(leased.embedding.facts, source.embedding_id)

    async def _durable(
        self, held: AsyncExitStack, leased: Leased, context: RequestContext
    ) -> Leased:
        key = EmbeddingKey(context.tenant, leased.embedding_id)
        try:
            with context.clock.stage("cache_put"):
                lease = self.store.lease(key, durable=True, again=True)
                return replace(leased, embedding=await held.enter_async_context(lease))
        except EmbeddingNotFound:
            raise StoreUnavailable("the embedding was deleted while it was stored") from None

    async def prefetch(
        self, image: Image, model_name: str, context: RequestContext
    ) -> Leased | Pending:
        """Begin to encode *image*, after everybody who waits for something; see `Prefetches`.

        Gives the embedding, which is not held, if it is there already.
        """
        model = self.model(model_name)
        context.facts.model = model.name
        async with AsyncExitStack() as held:
            key, leased = await self._find(held, image, model, context, renew=True)
        if leased is not None:
            return leased
        job = await self._job(key, image, model, context)
        # It may begin long after this call, and must not bring back what is deleted until then.
        with context.clock.stage("cache_get_miss"):
            job = replace(job, since=await self.store.epoch(key))
        behind = replace(context, priority=Priority.BULK, clock=context.clock.branch())
        context.facts.cache = "pending"
        work = partial(self._complete, job, behind)
        if self._prefetches.start(key, context.tenant, len(job.image.data), work):
            self._prefetched[key] = job
        return Pending(key.embedding_id, job.size, model)

    async def delete(self, embedding_id: str, context: RequestContext) -> bool:
        """Forget an embedding of the caller's tenant; False if there was none."""
        key = EmbeddingKey(context.tenant, embedding_id)
        self._let_nobody_join(key)
        try:
            with context.clock.stage("cache_delete"):
                return await self.store.delete(key)
        finally:
            # What was begun meanwhile may not have known of it.
            self._let_nobody_join(key)

    def _let_nobody_join(self, key: EmbeddingKey) -> None:
        """Have whoever embeds after this not be given what is deleted."""
        self.encoder.detach(key)
        self._prefetches.forget(key)
        self._prefetched.pop(key, None)

    async def _by_id(
        self,
        held: AsyncExitStack,
        embedding_id: str,
        model_name: str,
        context: RequestContext,
    ) -> Leased:
        key = EmbeddingKey(context.tenant, embedding_id)
        if self.encoder.under_way(key) or key in self._prefetched:
            embedding = await self._join_pending(held, key, context)
            context.facts.cache = "joined"
        else:
            embedding = await self._lookup(held, key, context)
        model = self._model_of(embedding.facts, embedding_id)
        context.facts.model = model.name
        if model_name and self.model(model_name) != model:
            raise InvalidRequest(
                "model",
                f"the embedding was made by {model.name!r}; leave this empty",
                metadata={"model": model.name},
            )
        return Leased(embedding_id, embedding, model, cached=True)

    def _model_of(self, facts: EmbeddingFacts, embedding_id: str) -> ModelInfo:
        model = self.engine.models.get(facts.model_name)
        if model is None or not facts.made_by(model):
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
        model_name: str,
        context: RequestContext,
        check: Check,
        renew: bool,
    ) -> Leased:
        for _ in range(_MOST_ENCODINGS - 1):
            model = self.model(model_name)
            try:
                return await self._by_image_under(held, image, model, context, check, renew)
            except WeightsChanged:
                context.check_deadline()
                # The engine has looked again; if there is nothing new the caller has to.
                if self.model(model_name).digest == model.digest:
                    raise
        last = self.model(model_name)
        return await self._by_image_under(held, image, last, context, check, renew)

    async def _by_image_under(
        self,
        held: AsyncExitStack,
        image: Image,
        model: ModelInfo,
        context: RequestContext,
        check: Check,
        renew: bool,
    ) -> Leased:
        context.facts.model = model.name
        key, leased = await self._find(held, image, model, context, renew=renew)
        if leased is not None:
            check(leased.embedding.facts.image_size, model)
            return leased
        job = await self._job(key, image, model, context)
        check(job.size, model)
        encoded = await self.encoder.encode(held, job, context)
        return Leased(key.embedding_id, encoded.embedding, model, encoded.cached)

    async def _find(
        self,
        held: AsyncExitStack,
        image: Image,
        model: ModelInfo,
        context: RequestContext,
        *,
        renew: bool,
    ) -> tuple[EmbeddingKey, Leased | None]:
        """Look for the embedding of *image*; a store that is away is one that has nothing.

        Raises `EmbeddingNotFound` for an image that is only a digest.
        """
        with context.clock.stage("hash"):
            embedding_id = await self.workers.run(context, ids.embedding_id, image, model)
        key = EmbeddingKey(context.tenant, embedding_id)
        try:
            sent = not isinstance(image, ImageDigest)
            embedding = await self._lookup(held, key, context, renew=renew, image_sent=sent)
        except (EmbeddingNotFound, StoreUnavailable):
            if isinstance(image, ImageDigest):
                # Also during an outage: whoever sends the picture can go on.
                raise not_found(key) from None
            return key, None
        return key, Leased(embedding_id, embedding, model, cached=True)

    async def _lookup(
        self,
        held: AsyncExitStack,
        key: EmbeddingKey,
        context: RequestContext,
        *,
        renew: bool = False,
        image_sent: bool = False,
    ) -> Embedding:
        """Hold what the store has, and note where that was."""
        clock, found = context.clock, "miss"
        try:
            with clock.stage("cache_get"):
                lease = self.store.lease(key, renew=renew, image_sent=image_sent)
                embedding = await held.enter_async_context(lease)
            found = embedding.tier.value
            return embedding
        finally:
            clock.rename("cache_get", f"cache_get_{found}")
            context.facts.cache = found

    async def _job(
        self, key: EmbeddingKey, image: Image, model: ModelInfo, context: RequestContext
    ) -> Job:
        """Look at a picture that has to be encoded, and whether the caller may have that done."""
        assert isinstance(image, EncodedImage | RawImage)
        context.principal.require(Permission.EMBED)
        self.store.check_room(context.tenant, model.embedding)
        with context.clock.stage("decode_image"):
            size = await self.workers.run(context, images.probe, image, self.limits)
        context.allowance.check_image(size.pixels)
        return Job(key, image, model, size)

    async def _join_pending(
        self, held: AsyncExitStack, key: EmbeddingKey, context: RequestContext
    ) -> Embedding:
        """Wait for what is being made; what only waits for its turn is made at once."""
        try:
            if self.encoder.under_way(key):
                encoded = await self.encoder.join(held, key, context)
            else:
                encoded = await self.encoder.encode(held, self._prefetched[key], context)
        except InvalidRequest:
            # It is about a picture that this caller has not sent.
            raise not_found(key) from None
        if encoded.embedding.revoked:
            raise not_found(key)
        return encoded.embedding

    async def _complete(self, job: Job, context: RequestContext) -> None:
        try:
            async with AsyncExitStack() as held:
                await self.encoder.encode(held, job, context)
        finally:
            if self._prefetched.get(job.key) is job:
                del self._prefetched[job.key]
