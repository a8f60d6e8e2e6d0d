"""Making embeddings: decode the image, resize it, run the image encoder, publish."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from samserve import images
from samserve.context import CallFacts, RequestContext
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import EmbeddingNotFound, SamserveError
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.scheduling.single_flight import SingleFlight
from samserve.scheduling.thread_pools import Workers
from samserve.stages import Entering, StageClock
from samserve.stores.base import EmbeddingStore, Epoch
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
    """One image to be encoded by one model; ``size`` is what its header says.

    ``since`` is what had been deleted when the job was requested, None for when the work begins.
    With ``keep_pixels`` the lease has the decoded image, if this job decodes it.
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

    ``cached`` says whether it was stored before this call.
    ``pixels`` is the decoded image, uint8 RGB ``[h, w, 3]``, if that was to be kept and there was
    need to decode it.
    """

    embedding_id: str
    embedding: Embedding
    model: ModelInfo
    cached: bool
    pixels: UInt8Array | None = None


@dataclass(frozen=True, slots=True, eq=False)
class EncodeJobs:
    """Encodes images, each once however many calls want it at the same time."""

    engine: Engine
    store: EmbeddingStore
    workers: Workers
    limits: images.ImageLimits
    deadline_s: float
    _flights: SingleFlight[EmbeddingKey, EmbeddingLease] = field(
        default_factory=SingleFlight, init=False
    )

    def is_running(self, key: EmbeddingKey) -> bool:
        """Return whether a job for this key runs that a call could join."""
        return self._flights.under_way(key)

    def detach(self, key: EmbeddingKey) -> None:
        """Keep later calls from joining the job that runs."""
        self._flights.detach(key)

    def join(
        self, key: EmbeddingKey, context: RequestContext
    ) -> AbstractAsyncContextManager[EmbeddingLease]:
        """Wait for the job that runs and hold its embedding.  Raises ``KeyError`` if none does."""
        return context.clock.entering("join", self._flights.join_existing(key))

    @asynccontextmanager
    async def encode(
        self, job: EncodeJob, context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        """Make an embedding, or wait for the call that makes it already, and hold it."""
        while True:
            # The call that begins the work is charged its stages, the others their wait.
            work = context.clock.branch()
            flight = self._flights.join(job.key, partial(self._run, job, context, work))
            async with context.clock.entering("join", flight, work) as (lease, leads):
                if leads or not lease.embedding.revoked:
                    context.facts.cache = "miss" if leads else "joined"
                    yield lease
                    return
            # It was deleted after that work had begun, which may be before this call did.

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
        """Find or make the embedding and hold it; for all calls that join, not for *caller*."""
        deadline = caller.now() + self.deadline_s
        context = replace(caller, deadline=deadline, clock=clock, facts=CallFacts())
        return Entering(clock.running(), self._find_or_make(job, context))

    @asynccontextmanager
    async def _find_or_make(
        self, job: EncodeJob, context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        with context.clock.stage("cache_get"):
            since = await self.store.epoch(job.key) if job.since is None else job.since
        # The caller met a miss, then read the header: another job may have ended meanwhile.
        stored = self.store.lease(job.key, again=True, image_sent=True)
        async with Lookup(stored, context, EmbeddingNotFound) as embedding:
            if embedding is not None:
                yield EmbeddingLease(job.key.embedding_id, embedding, job.model, cached=True)
                return
        slot, pixels = await self._make(job, since, context)
        published = self.store.publish(slot)
        async with context.clock.entering("cache_put", published) as embedding:
            yield EmbeddingLease(
                job.key.embedding_id, embedding, job.model, cached=False, pixels=pixels
            )

    async def _make(
        self, job: EncodeJob, since: Epoch, context: RequestContext
    ) -> tuple[Slot, UInt8Array | None]:
        """Return a slot that is ready to be published, and the pixels if the job keeps them."""
        clock = context.clock
        with clock.in_thread("decode_image") as thread_clock:
            pixels, prepared = await self.workers.run(
                context, _prepare, job, self.limits, thread_clock
            )
        facts = EmbeddingFacts.of(Size(*pixels.shape[:2]), job.model)
        kept = pixels if job.keep_pixels else None
        del pixels  # which may be large, and encoding takes long
        with clock.stage("cache_put"):
            slot = await self.store.reserve(job.key, facts, job.model.embedding, since=since)
        try:
            with clock.stage("encode"):
                await self.engine.encode(job.model.name, prepared, slot, context)
        except BaseException:
            await self.store.discard(slot)
            raise
        return slot, kept


class Lookup(Entering[Embedding | None]):
    """Holds what a lease of the store finds, None if it raises one of *absent*.

    Where it was found is the stage that is charged, ``cache_get_memory``, ``cache_get_shared`` or
    ``cache_get_miss``, and a fact of the call.
    """

    def __init__(
        self,
        lease: AbstractAsyncContextManager[Embedding],
        context: RequestContext,
        *absent: type[SamserveError],
    ) -> None:
        super().__init__(context.clock.stage("cache_get"), lease)
        self._context = context
        self._absent = absent
        self._embedding: Embedding | None = None

    async def __aenter__(self) -> Embedding | None:
        try:
            self._embedding = await super().__aenter__()
        except self._absent:
            pass
        finally:
            found = "miss" if self._embedding is None else self._embedding.tier.value
            self._context.clock.rename("cache_get", f"cache_get_{found}")
            self._context.facts.cache = found
        return self._embedding

    async def __aexit__(self, *error: Any) -> bool | None:
        return None if self._embedding is None else await super().__aexit__(*error)


def _prepare(
    job: EncodeJob, limits: images.ImageLimits, clock: StageClock
) -> tuple[UInt8Array, EncoderInput]:
    """Decode to uint8 RGB ``[h, w, 3]``, and resize."""
    pixels = images.decode(job.image, limits)
    with clock.running(), clock.stage("resize"):
        return pixels, _resize(pixels, job.model)


def _resize(pixels: UInt8Array, model: ModelInfo) -> EncoderInput:
    family = families.of(model)
    transform = family.transform(Size(*pixels.shape[:2]), model)
    return EncoderInput(family.place(pixels, transform), transform.resized)
