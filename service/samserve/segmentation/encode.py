"""Making embeddings: decode the image, resize it, run the image encoder, publish."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
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
class _Prepared:
    """A decoded image: its size, the input of the encoder, and the pixels if they are kept."""

    size: Size
    input: EncoderInput
    pixels: UInt8Array | None


class EncodeJobs:
    """Encodes images, each once however many calls want it at the same time."""

    def __init__(
        self,
        engine: Engine,
        store: EmbeddingStore,
        workers: Workers,
        limits: images.ImageLimits,
        deadline_s: float,
    ) -> None:
        self._engine = engine
        self._store = store
        self._workers = workers
        self._limits = limits
        self._deadline_s = deadline_s
        self._flights: SingleFlight[EmbeddingKey, EmbeddingLease] = SingleFlight()

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
                if not leads:
                    context.facts.cache = "joined"
                if leads or not lease.embedding.revoked:
                    yield lease
                    return
            # It was deleted after that work had begun, which may be before this call did.

    async def encode_pixels(
        self, pixels: UInt8Array, model: ModelInfo, slot: Slot, context: RequestContext
    ) -> None:
        """Resize uint8 RGB ``[h, w, 3]`` into the model frame and encode it into *slot*."""
        with context.clock.stage("resize"):
            prepared = await self._workers.run(context, _resize, pixels, model)
        with context.clock.stage("encode"):
            await self._engine.encode(model.name, prepared, slot, context)

    @asynccontextmanager
    async def _run(
        self, job: EncodeJob, caller: RequestContext, clock: StageClock
    ) -> AsyncIterator[EmbeddingLease]:
        """Find or make the embedding and hold it; for all calls that join, not for *caller*."""
        deadline = caller.now() + self._deadline_s
        context = replace(caller, deadline=deadline, clock=clock, facts=CallFacts())
        async with AsyncExitStack() as stack:
            with clock.running():
                lease = await stack.enter_async_context(self._find_or_make(job, context))
            yield lease

    @asynccontextmanager
    async def _find_or_make(
        self, job: EncodeJob, context: RequestContext
    ) -> AsyncIterator[EmbeddingLease]:
        with context.clock.stage("cache_get"):
            since = await self._store.epoch(job.key) if job.since is None else job.since
        # The caller met a miss, then read the header: another job may have ended meanwhile.
        stored = self._store.lease(job.key, again=True, image_sent=True)
        async with Lookup(stored, context, EmbeddingNotFound) as embedding:
            if embedding is not None:
                yield EmbeddingLease(job.key.embedding_id, embedding, job.model, cached=True)
                return
        slot, pixels = await self._make(job, since, context)
        published = self._store.publish(slot)
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
            prepared = await self._workers.run(context, _prepare, job, self._limits, thread_clock)
        with clock.stage("cache_put"):
            facts = EmbeddingFacts.of(prepared.size, job.model)
            slot = await self._store.reserve(job.key, facts, job.model.embedding, since=since)
        try:
            with clock.stage("encode"):
                await self._engine.encode(job.model.name, prepared.input, slot, context)
        except BaseException:
            await self._store.discard(slot)
            raise
        return slot, prepared.pixels


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


def _prepare(job: EncodeJob, limits: images.ImageLimits, clock: StageClock) -> _Prepared:
    pixels = images.decode(job.image, limits)
    with clock.running(), clock.stage("resize"):
        prepared = _resize(pixels, job.model)
    return _Prepared(Size(*pixels.shape[:2]), prepared, pixels if job.keep_pixels else None)


def _resize(pixels: UInt8Array, model: ModelInfo) -> EncoderInput:
    family = families.of(model)
    transform = family.transform(Size(*pixels.shape[:2]), model)
    return EncoderInput(family.place(pixels, transform), transform.resized)
