"""The Embed use case: from an image to a leased embedding, encoding it at most once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from samserve import images
from samserve.cache.base import EmbeddingCache, not_found
from samserve.context import CallFacts, Priority, RequestContext
from samserve.engines.base import Engine
from samserve.errors import (
    CacheUnavailable,
    EmbeddingNotFound,
    InvalidRequest,
    WeightsChanged,
)
from samserve.scheduling.offload import MAX_HASHED_BYTES
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

# Encodes of one image in one call.  Two Triton servers with different weights behind one host name
# can contradict each other for as long as both run.
_MAX_ENCODE_ATTEMPTS = 3


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingService:
    """Finds embeddings in the cache and computes those that are missing."""

    engine: Engine
    cache: EmbeddingCache
    workers: Workers
    limits: images.ImageLimits
    jobs: EncodeJobs
    prefetches: PrefetchQueue

    def model(self, name: str) -> ModelInfo:
        """Return a model by name; the empty name means the default.  Raises `ModelNotFound`."""
        return served.find(self.engine.models, name)

    def lease(
        self,
        source: Source,
        model_name: str,
        context: RequestContext,
        options: LeaseOptions = DEFAULT_LEASE,
    ) -> AbstractAsyncContextManager[EmbeddingLease]:
        """Lease the embedding of *source* while the block runs, encoding it first if necessary.

        If the weights of the model are replaced before the block is entered, an image is encoded
        again.  Raises `WeightsChanged` if the new weights are not known yet or if they are replaced
        within the block, and `EmbeddingNotFound` for an embedding id whose weights are no longer
        served.
        """
        if isinstance(source, EmbeddingRef):
            leasing = self._lease_by_id(source.embedding_id, model_name, context, options)
        else:
            leasing = self._lease_by_image(source.image, model_name, context, options)
        return self._lease_durable(leasing, context) if options.durable else leasing

    async def prefetch(
        self, image: Image, model_name: str, context: RequestContext
    ) -> EmbeddingLease | PendingEmbedding:
        """Start to encode *image* at the lowest priority; see `PrefetchQueue`.

        Returns the embedding, without a lease on it, if it is in the cache already.
        """
        model = self.model(model_name)
        key = await self._key(image, model, context)
        async with self._lookup(key, image, context, renew=True) as embedding:
            if embedding is not None:
                return EmbeddingLease(key.embedding_id, embedding, model, cached=True)
        job = await self._job(key, image, model, context)
        # The job may start long after this call and must not restore what is deleted before then.
        with context.clock.stage("cache_get_miss"):
            job = replace(job, since=await self.cache.epoch(key))
        context.facts.cache = "pending"
        clock, facts = context.clock.branch(), CallFacts()
        background = replace(context, priority=Priority.BULK, clock=clock, facts=facts)
        self.prefetches.start(job, partial(self._run_prefetch, context=background))
        return PendingEmbedding(key.embedding_id, job.size, model)

    async def delete(self, embedding_id: str, context: RequestContext) -> bool:
        """Delete an embedding of the caller's tenant; return False if there was none."""
        key = EmbeddingKey(context.tenant, embedding_id)
        self._detach(key)
        try:
            with context.clock.stage("cache_delete"):
                return await self.cache.delete(key)
        finally:
            # Jobs that started during the deletion may not have seen it.
            self._detach(key)

    async def decode(self, image: EncodedImage | RawImage, context: RequestContext) -> UInt8Array:
        """Decode to uint8 RGB ``[h, w, 3]``; raises as `images.decode` does."""
        with context.clock.stage("decode_image"):
            return await self.workers.run(context, images.decode, image, self.limits)

    @asynccontextmanager
    async def encode_transient(
        self, pixels: UInt8Array, name: str, model: ModelInfo, context: RequestContext
    ) -> AsyncIterator[Embedding]:
        """Encode uint8 RGB ``[h, w, 3]`` for this call only; no other call finds it by *name*."""
        facts = EmbeddingFacts.of(Size(*pixels.shape[:2]), model)
        key = EmbeddingKey(context.tenant, name)
        slot = await self.cache.reserve(key, facts, model.embedding, transient=True)
        try:
            await self.jobs.encode_pixels(pixels, model, slot, context)
            yield slot.as_embedding()
        finally:
            await self.cache.discard(slot)

    def _detach(self, key: EmbeddingKey) -> None:
        """Prevent calls that begin after a deletion from joining work that began before it."""
        self.jobs.detach(key)
        self.prefetches.detach(key)

    @asynccontextmanager
    async def _lease_by_id(
        self, embedding_id: str, model_name: str, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        key, lease = EmbeddingKey(context.tenant, embedding_id), None
        try:
            async with self._lease_pending_or_cached(key, context) as embedding:
                assert embedding is not None
                model = served.model_of(embedding_id, embedding.facts, self.engine.models)
                context.facts.of_model(model)
                with self.engine.using(model, context):
                    served.check_name(model_name, model, self.engine.models)
                    options.check(embedding.facts.image_size, model)
                    lease = EmbeddingLease(embedding_id, embedding, model, cached=True)
                    yield lease
        except WeightsChanged:
            if lease is None:
                # The embedding was being encoded; that encode failed.
                raise not_found(key) from None
            # Raises `EmbeddingNotFound` if a retry with this id cannot succeed.
            served.model_of(embedding_id, lease.embedding.facts, self.engine.models)
            raise

    def _lease_pending_or_cached(
        self, key: EmbeddingKey, context: RequestContext
    ) -> AbstractAsyncContextManager[Embedding | None]:
        job = self.prefetches.job(key)
        if job is not None or self.jobs.is_running(key):
            return self._lease_pending(key, job, context)
        return Lookup(self.cache.lease(key), context)

    @asynccontextmanager
    async def _lease_pending(
        self, key: EmbeddingKey, job: EncodeJob | None, context: RequestContext
    ) -> AsyncIterator[Embedding]:
        """Wait for an encode in progress; run a job at once that is still queued."""
        if job is None or self.jobs.is_running(key):
            encoding = self.jobs.join(key, context)
        else:
            encoding = self.jobs.encode(job, context)
        async with AsyncExitStack() as stack:
            try:
                embedding = (await stack.enter_async_context(encoding)).embedding
            except InvalidRequest:
                # The error concerns an image that this caller has not sent.
                raise not_found(key) from None
            if embedding.revoked:
                raise not_found(key)
            context.facts.cache = "joined"
            yield embedding

    @asynccontextmanager
    async def _lease_by_image(
        self, image: Image, model_name: str, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        async with AsyncExitStack() as stack:
            for retries in reversed(range(_MAX_ENCODE_ATTEMPTS)):
                model = self.model(model_name)
                try:
                    leasing = self._lease_by_model(image, model, context, options)
                    lease = await stack.enter_async_context(leasing)
                    break
                except WeightsChanged as error:
                    context.check_deadline()
                    self._check_replaced(model, model_name, retries, error)
            yield lease

    def _check_replaced(
        self, model: ModelInfo, model_name: str, retries: int, error: WeightsChanged
    ) -> None:
        """Raise *error* unless the engine, which has checked again, serves another encoder now."""
        if not retries or self.model(model_name).encoder_digest == model.encoder_digest:
            raise error

    @asynccontextmanager
    async def _lease_by_model(
        self, image: Image, model: ModelInfo, context: RequestContext, options: LeaseOptions
    ) -> AsyncIterator[EmbeddingLease]:
        """Lease the embedding of *image* by exactly this model: the cached one, or a new one."""
        # Before any wait: from here on, the call uses this version.
        with self.engine.using(model, context):
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
                # The encode may be another call's, which began with another decoder.
                yield replace(lease, model=model)

    async def _key(self, image: Image, model: ModelInfo, context: RequestContext) -> EmbeddingKey:
        context.facts.of_model(model)
        # The header is not read here: a cached image does not need it, and reading it takes half
        # as long as the hash.
        with context.clock.stage("hash"):
            embedding_id = await self.workers.run_unless(
                ids.hashed_bytes(image) <= MAX_HASHED_BYTES,
                context,
                partial(ids.embedding_id, image, model),
            )
        return EmbeddingKey(context.tenant, embedding_id)

    def _lookup(
        self, key: EmbeddingKey, image: Image, context: RequestContext, *, renew: bool
    ) -> Lookup:
        """Lease the cached embedding of *image*; an unavailable cache counts as a miss."""
        image_sent = not isinstance(image, ImageDigest)
        cache_lease = self.cache.lease(key, renew=renew, image_sent=image_sent)
        return Lookup(cache_lease, context, EmbeddingNotFound, CacheUnavailable)

    async def _job(
        self, key: EmbeddingKey, image: Image, model: ModelInfo, context: RequestContext
    ) -> EncodeJob:
        """Read the header of an image, after checking the caller's permission to encode it.

        Raises `EmbeddingNotFound` for an image that is only a digest.
        """
        if isinstance(image, ImageDigest):
            # Also during an outage: the caller can then send the image itself.
            raise not_found(key)
        context.principal.require(Permission.EMBED)
        self.cache.check_quota(context.tenant, model.embedding)
        with context.clock.stage("decode_image"):
            size = await self.workers.run(context, images.probe, image, self.limits)
        context.allowance.check_image(size.pixels)
        return EncodeJob(key, image, model, size)

    @asynccontextmanager
    async def _lease_durable(
        self, leasing: AbstractAsyncContextManager[EmbeddingLease], context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        """Lease an embedding that the loss of one machine does not lose."""
        async with leasing as lease, AsyncExitStack() as stack:
            key = EmbeddingKey(context.tenant, lease.embedding_id)
            cache_lease = self.cache.lease(key, durable=True, after_miss=True)
            try:
                entering = context.clock.entering("cache_put", cache_lease)
                embedding = await stack.enter_async_context(entering)
            except EmbeddingNotFound:
                raise CacheUnavailable("the embedding was deleted while it was stored") from None
            yield replace(lease, embedding=embedding)

    async def _run_prefetch(self, job: EncodeJob, context: RequestContext) -> None:
        async with self.jobs.encode(job, context):
            pass
