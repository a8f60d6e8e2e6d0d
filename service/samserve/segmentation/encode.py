"""Computing embeddings, each once for concurrent calls: decode, resize, encode, publish."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from samserve import images
from samserve.cache.base import EmbeddingCache, Epoch
from samserve.context import CallFacts, RequestContext
from samserve.core import geometry
from samserve.core.geometry import RgbImage
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import EmbeddingNotFound, SamserveError
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.scheduling.single_flight import SingleFlight
from samserve.scheduling.thread_pools import Workers
from samserve.stages import Entering, StageClock
from samserve.types import (
    Embedding,
    EmbeddingFacts,
    EmbeddingKey,
    EncodedImage,
    ModelInfo,
    RawImage,
    Size,
    UInt8Array,
)


@dataclass(frozen=True, slots=True, eq=False)
class EncodeJob:
    """One image to be encoded by one model; ``size`` is read from its header.

    ``since`` is the deletion epoch at the time of the request; None means the time at which the
    work begins.  With ``keep_pixels`` the lease has the decoded image, if this job decodes it.
    """

    key: EmbeddingKey
    image: EncodedImage | RawImage
    model: ModelInfo
    size: Size
    since: Epoch | None = None
    keep_pixels: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingLease:
    """An embedding in use, and the model that decodes it.

    ``cached`` is whether it was in the cache before this call.  ``pixels`` is the decoded image,
    uint8 RGB ``[h, w, 3]``, if the job had ``keep_pixels`` and decoded it.
    """

    embedding_id: str
    embedding: Embedding
    model: ModelInfo
    cached: bool
    pixels: UInt8Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodeJobs:
    """Encodes images, each once however many calls need it at the same time."""

    engine: Engine
    cache: EmbeddingCache
    workers: Workers
    limits: images.ImageLimits
    deadline_s: float
    _flights: SingleFlight[EmbeddingKey, EmbeddingLease] = field(
        default_factory=SingleFlight, init=False
    )

    def is_running(self, key: EmbeddingKey) -> bool:
        """Return whether a job for this key runs that a call could join."""
        return self._flights.in_flight(key)

    def detach(self, key: EmbeddingKey) -> None:
        """Prevent later calls from joining the running job."""
        self._flights.detach(key)

    def join(
        self, key: EmbeddingKey, context: RequestContext
    ) -> AbstractAsyncContextManager[EmbeddingLease]:
        """Wait for the running job and lease its embedding.  Raises ``KeyError`` without one."""
        return context.clock.entering("join", self._flights.join_existing(key))

    @asynccontextmanager
    async def encode(
        self, job: EncodeJob, context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        """Encode an image, or join the encode in progress, and lease the embedding."""
        while True:
            # The call that starts the work is charged for its stages, the others for their wait.
            work = context.clock.branch()
            flight = self._flights.join(job.key, partial(self._run, job, context, work))
            async with context.clock.entering("join", flight, work) as (lease, started):
                if started or not lease.embedding.revoked:
                    context.facts.cache = "miss" if started else "joined"
                    yield lease
                    return
            # The embedding was deleted after that work began, perhaps before this call began.

    async def encode_pixels(
        self, pixels: UInt8Array, model: ModelInfo, slot: Slot, context: RequestContext
    ) -> None:
        """Resize uint8 RGB ``[h, w, 3]`` into the model frame and encode it into *slot*."""
        with context.clock.stage("resize"):
            prepared = await self.workers.run(context, _resize, pixels, model)
        with context.clock.stage("encode"):
            await self.engine.encode(model.name, prepared, slot, context)

    def _run(
        self, job: EncodeJob, caller: RequestContext, clock: StageClock
    ) -> AbstractAsyncContextManager[EmbeddingLease]:
        """Find or encode the embedding and lease it, for all joined calls and not only *caller*."""
        deadline = caller.now() + self.deadline_s
        context = replace(caller, deadline=deadline, clock=clock, facts=CallFacts())
        return Entering(clock.running(), self._find_or_encode(job, context))

    @asynccontextmanager
    async def _find_or_encode(
        self, job: EncodeJob, context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        with context.clock.stage("cache_get"):
            since = await self.cache.epoch(job.key) if job.since is None else job.since
        # Since the caller's lookup missed, another job may have published the embedding.
        cache_lease = self.cache.lease(job.key, after_miss=True, image_sent=True)
        async with Lookup(cache_lease, context, EmbeddingNotFound) as embedding:
            if embedding is not None:
                yield EmbeddingLease(job.key.embedding_id, embedding, job.model, cached=True)
                return
        slot, pixels = await self._encode_to_slot(job, since, context)
        published = self.cache.publish(slot)
        async with context.clock.entering("cache_put", published) as embedding:
            yield EmbeddingLease(
                job.key.embedding_id, embedding, job.model, cached=False, pixels=pixels
            )

    async def _encode_to_slot(
        self, job: EncodeJob, since: Epoch, context: RequestContext
    ) -> tuple[Slot, UInt8Array | None]:
        """Return a slot that is ready to publish, and the pixels if the job keeps them."""
        clock = context.clock
        with clock.in_thread("decode_image") as thread_clock:
            size, prepared, pixels = await self.workers.run(
                context, _prepare, job, self.limits, thread_clock
            )
        facts = EmbeddingFacts.of(size, job.model)
        with clock.stage("cache_put"):
            slot = await self.cache.reserve(job.key, facts, job.model.embedding, since=since)
        try:
            with clock.stage("encode"):
                await self.engine.encode(job.model.name, prepared, slot, context)
        except BaseException:
            await self.cache.discard(slot)
            raise
        return slot, pixels


class Lookup(Entering[Embedding | None]):
    """Leases an embedding from the cache; yields None if the lease raises one of *miss_errors*.

    The time is charged to the stage of the tier that had it, ``cache_get_local`` or
    ``cache_get_shared``, or to ``cache_get_miss``.  The tier is also recorded in the call's facts.
    """

    def __init__(
        self,
        lease: AbstractAsyncContextManager[Embedding],
        context: RequestContext,
        *miss_errors: type[SamserveError],
    ) -> None:
        super().__init__(context.clock.stage("cache_get"), lease)
        self._context = context
        self._miss_errors = miss_errors
        self._embedding: Embedding | None = None

    async def __aenter__(self) -> Embedding | None:
        try:
            self._embedding = await super().__aenter__()
        except self._miss_errors:
            pass
        finally:
            tier = "miss" if self._embedding is None else self._embedding.tier.value
            self._context.clock.rename("cache_get", f"cache_get_{tier}")
            self._context.facts.cache = tier
        return self._embedding

    async def __aexit__(self, *error: Any) -> bool | None:
        return None if self._embedding is None else await super().__aexit__(*error)


def _prepare(
    job: EncodeJob, limits: images.ImageLimits, clock: StageClock
) -> tuple[Size, EncoderInput, UInt8Array | None]:
    """Decode and resize; return also the size, and the pixels if the job keeps them."""
    image = images.read(job.image, limits)
    with clock.running(), clock.stage("resize"):
        prepared = _resize(image, job.model)
    # An image may be large, and encoding takes long: it is freed here if nothing needs it.
    pixels = images.to_array(image) if job.keep_pixels else None
    return geometry.size_of(image), prepared, pixels


def _resize(image: RgbImage, model: ModelInfo) -> EncoderInput:
    family = families.of(model)
    transform = family.transform(geometry.size_of(image), model)
    valid = None if family.fills_frame else transform.resized
    return EncoderInput(family.place(image, transform), valid)
