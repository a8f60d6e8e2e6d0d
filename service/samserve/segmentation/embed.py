"""The use case Embed: from an image to a leased embedding, encoding it at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from samserve import images
from samserve.context import CallFacts, Priority, RequestContext
from samserve.engines.base import Engine
from samserve.errors import (
    EmbeddingNotFound,
    InvalidRequest,
    StoreUnavailable,
    WeightsChanged,
)
from samserve.scheduling.thread_pools import Workers
from samserve.security.principal import Permission
from samserve.segmentation import ids, served
from samserve.segmentation.encode import EmbeddingLease, EncodeJob, EncodeJobs, Lookup
from samserve.segmentation.prefetch import PrefetchQueue
from samserve.segmentation.sources import (
    DEFAULT_LEASE,
    EmbeddingRef,
    LeaseOptions,
    PendingEmbedding,
    Source,
)
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
    UInt8Array,
)

# Of an image in one call.  Two servers of different weights behind one name of Triton can go on
# contradicting each other for as long as both are there.
_MAX_ENCODINGS = 3


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingService:
    """Finds embeddings in the store and makes those that are missing."""

    engine: Engine
    store: EmbeddingStore
    workers: Workers
    limits: images.ImageLimits
    jobs: EncodeJobs
    prefetches: PrefetchQueue

    def model(self, name: str) -> ModelInfo:
        """Find a model; the empty name means the default.  Raises `ModelNotFound`."""
        return served.find(self.engine.models, name)

    def lease(
        self,
        source: Source,
        model_name: str,
        context: RequestContext,
        options: LeaseOptions = DEFAULT_LEASE,
    ) -> AbstractAsyncContextManager[EmbeddingLease]:
        """Hold the embedding of *source* while the block runs, encoding it first if need be.

        If the weights of the model are replaced meanwhile, an image is encoded again.  Raises
        `WeightsChanged` if they are not known yet, or if that happens within the block, and
        `EmbeddingNotFound` for an embedding, given by its id, whose weights are gone.
        """
        if isinstance(source, EmbeddingRef):
            leasing = self._by_id(source.embedding_id, model_name, context, options)
        else:
            leasing = self._by_image(source.image, model_name, context, options)
        return self._durable(leasing, context) if options.durable else leasing

    async def prefetch(
        self, image: Image, model_name: str, context: RequestContext
    ) -> EmbeddingLease | PendingEmbedding:
        """Begin to encode *image*, after all that calls wait for; see `PrefetchQueue`.

        Returns the embedding, which is not held, if it is stored already.
        """
        model = self.model(model_name)
        key = await self._key(image, model, context)
        async with self._lookup(key, image, context, renew=True) as embedding:
            if embedding is not None:
                return EmbeddingLease(key.embedding_id, embedding, model, cached=True)
        job = await self._job(key, image, model, context)
        # It may begin long after this call, and must not bring back what is deleted until then.
        with context.clock.stage("cache_get_miss"):
            job = replace(job, since=await self.store.epoch(key))
        context.facts.cache = "pending"
        clock, facts = context.clock.branch(), CallFacts()
        background = replace(context, priority=Priority.BULK, clock=clock, facts=facts)
        self.prefetches.start(job, partial(self._complete, context=background))
        return PendingEmbedding(key.embedding_id, job.size, model)

    async def delete(self, embedding_id: str, context: RequestContext) -> bool:
        """Delete an embedding of the caller's tenant; False if there was none."""
        key = EmbeddingKey(context.tenant, embedding_id)
        self._detach(key)
        try:
            with context.clock.stage("cache_delete"):
                return await self.store.delete(key)
        finally:
            # What was begun meanwhile may not have known of it.
            self._detach(key)

    async def decode(self, image: EncodedImage | RawImage, context: RequestContext) -> UInt8Array:
        """Decode to uint8 RGB ``[h, w, 3]``; raises as `images.decode` does."""
        with context.clock.stage("decode_image"):
            return await self.workers.run(context, images.decode, image, self.limits)

    @asynccontextmanager
    async def unpublished(
        self, pixels: UInt8Array, name: str, model: ModelInfo, context: RequestContext
    ) -> AsyncIterator[Embedding]:
        """Encode uint8 RGB ``[h, w, 3]`` for this call alone; no other call finds it by *name*."""
        facts = EmbeddingFacts.of(Size(*pixels.shape[:2]), model)
        key = EmbeddingKey(context.tenant, name)
        slot = await self.store.reserve(key, facts, model.embedding, transient=True)
        try:
            await self.jobs.encode_pixels(pixels, model, slot, context)
            yield slot.as_embedding()
        finally:
            await self.store.discard(slot)

    def _detach(self, key: EmbeddingKey) -> None:
        """Keep calls that begin after a deletion from joining work that began before it."""
        self.jobs.detach(key)
        self.prefetches.forget(key)

    @asynccontextmanager
    async def _by_id(
        self, embedding_id: str, model_name: str, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        key, lease = EmbeddingKey(context.tenant, embedding_id), None
        try:
            async with self._pending_or_stored(key, context) as embedding:
                assert embedding is not None
                model = served.maker_of(embedding_id, embedding.facts, self.engine.models)
                context.facts.model = model.name
                served.check_name(model_name, model, self.engine.models)
                options.check(embedding.facts.image_size, model)
                lease = EmbeddingLease(embedding_id, embedding, model, cached=True)
                yield lease
        except WeightsChanged:
            if lease is None:
                # It was being made, and will not be.
                raise not_found(key) from None
            # Raises `EmbeddingNotFound` if calls with this id will not succeed again.
            served.maker_of(embedding_id, lease.embedding.facts, self.engine.models)
            raise

    def _pending_or_stored(
        self, key: EmbeddingKey, context: RequestContext
    ) -> AbstractAsyncContextManager[Embedding | None]:
        job = self.prefetches.job(key)
        if job is not None or self.jobs.is_running(key):
            return self._pending(key, job, context)
        return Lookup(self.store.lease(key), context)

    @asynccontextmanager
    async def _pending(
        self, key: EmbeddingKey, job: EncodeJob | None, context: RequestContext
    ) -> AsyncIterator[Embedding]:
        """Wait for what is being made; a job that only waits for its turn runs at once."""
        if job is None or self.jobs.is_running(key):
            making = self.jobs.join(key, context)
        else:
            making = self.jobs.encode(job, context)
        async with AsyncExitStack() as stack:
            try:
                embedding = (await stack.enter_async_context(making)).embedding
            except InvalidRequest:
                # It is about an image that this caller has not sent.
                raise not_found(key) from None
            if embedding.revoked:
                raise not_found(key)
            context.facts.cache = "joined"
            yield embedding

    @asynccontextmanager
    async def _by_image(
        self, image: Image, model_name: str, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        async with AsyncExitStack() as stack:
            for retries in reversed(range(_MAX_ENCODINGS)):
                model = self.model(model_name)
                try:
                    leasing = self._by_model(image, model, context, options)
                    lease = await stack.enter_async_context(leasing)
                    break
                except WeightsChanged as error:
                    context.check_deadline()
                    self._check_replaced(model, model_name, retries, error)
            yield lease

    def _check_replaced(
        self, model: ModelInfo, model_name: str, retries: int, error: WeightsChanged
    ) -> None:
        """Raise *error* unless the engine, which has looked again, serves another encoder now."""
        if not retries or self.model(model_name).encoder_digest == model.encoder_digest:
            raise error

    @asynccontextmanager
    async def _by_model(
        self, image: Image, model: ModelInfo, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        """Hold the embedding of *image* by exactly this model: the stored one, or a new one."""
        key = await self._key(image, model, context)
        async with self._lookup(key, image, context, renew=options.renew) as embedding:
            if embedding is not None:
                options.check(embedding.facts.image_size, model)
                yield EmbeddingLease(key.embedding_id, embedding, model, cached=True)
                return
        job = await self._job(key, image, model, context)
        options.check(job.size, model)
        job = replace(job, keep_pixels=options.keep_pixels)
        async with self.jobs.encode(job, context) as lease:
            yield lease

    async def _key(self, image: Image, model: ModelInfo, context: RequestContext) -> EmbeddingKey:
        context.facts.model = model.name
        # Without the header: a stored image needs it not, and it takes half as long as the hash.
        with context.clock.stage("hash"):
            embedding_id = await self.workers.run(context, ids.embedding_id, image, model)
        return EmbeddingKey(context.tenant, embedding_id)

    def _lookup(
        self, key: EmbeddingKey, image: Image, context: RequestContext, *, renew: bool
    ) -> Lookup:
        """Hold the stored embedding of *image*; a store that is unavailable has none."""
        sent = not isinstance(image, ImageDigest)
        stored = self.store.lease(key, renew=renew, image_sent=sent)
        return Lookup(stored, context, EmbeddingNotFound, StoreUnavailable)

    async def _job(
        self, key: EmbeddingKey, image: Image, model: ModelInfo, context: RequestContext
    ) -> EncodeJob:
        """Read the header of an image, after checking that the caller may have it encoded.

        Raises `EmbeddingNotFound` for an image that is only a digest.
        """
        if isinstance(image, ImageDigest):
            # Also during an outage: a caller that sends the image can go on.
            raise not_found(key)
        context.principal.require(Permission.EMBED)
        self.store.check_room(context.tenant, model.embedding)
        with context.clock.stage("decode_image"):
            size = await self.workers.run(context, images.probe, image, self.limits)
        context.allowance.check_image(size.pixels)
        return EncodeJob(key, image, model, size)

    @asynccontextmanager
    async def _durable(
        self, leasing: AbstractAsyncContextManager[EmbeddingLease], context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        """Hold it where the death of one machine does not lose it."""
        async with leasing as lease, AsyncExitStack() as stack:
            key = EmbeddingKey(context.tenant, lease.embedding_id)
            stored = self.store.lease(key, durable=True, again=True)
            try:
                entering = context.clock.entering("cache_put", stored)
                embedding = await stack.enter_async_context(entering)
            except EmbeddingNotFound:
                raise StoreUnavailable("the embedding was deleted while it was stored") from None
            yield replace(lease, embedding=embedding)

    async def _complete(self, job: EncodeJob, context: RequestContext) -> None:
        async with self.jobs.encode(job, context):
            pass
