"""Making embeddings: decode the picture, resize it, run the image encoder, publish."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial

from samserve import images
from samserve.context import RequestContext
from samserve.core import geometry
from samserve.engines.base import EncoderInput, Engine
from samserve.errors import EmbeddingNotFound
from samserve.memory.slot import Slot
from samserve.scheduling.single_flight import SingleFlight
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.prompts import Frames
from samserve.stages import StageClock
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
class Job:
    """One picture to be encoded under one model; ``size`` is what its file says.

    ``since`` is what was deleted when it was asked for, None for when the work begins.
    """

    key: EmbeddingKey
    image: EncodedImage | RawImage
    model: ModelInfo
    size: Size
    since: Epoch | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """What became of a job; ``cached`` if the embedding was there when its turn came."""

    embedding: Embedding
    cached: bool


class Encoder:
    """Encodes pictures, each once however many callers want it at the same time."""

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
        self._flights: SingleFlight[EmbeddingKey, Encoded] = SingleFlight()

    def under_way(self, key: EmbeddingKey) -> bool:
        """Whether the embedding is being made."""
        return self._flights.under_way(key)

    def detach(self, key: EmbeddingKey) -> None:
        """Let nobody else be given what is being made."""
        self._flights.detach(key)

    async def join(
        self, held: AsyncExitStack, key: EmbeddingKey, context: RequestContext
    ) -> Encoded:
        """Wait for what is being made.  Raises ``KeyError`` if there is nothing of the kind."""
        with context.clock.stage("join"):
            return await held.enter_async_context(self._flights.join_existing(key))

    async def encode(self, held: AsyncExitStack, job: Job, context: RequestContext) -> Encoded:
        """Make an embedding, or wait for who makes it already, and hold it."""
        while True:
            attempt = await held.enter_async_context(AsyncExitStack())
            encoded, leads = await self._attempt(attempt, job, context)
            if not leads:
                context.facts.cache = "joined"
            if leads or not encoded.embedding.revoked:
                return encoded
            # It was deleted after that work had begun, which may be before this call did.
            await attempt.aclose()

    async def encode_pixels(
        self, pixels: UInt8Array, model: ModelInfo, slot: Slot, context: RequestContext
    ) -> None:
        """Resize uint8 RGB ``[h, w, 3]`` into the model frame and encode it into *slot*."""
        with context.clock.stage("resize"):
            frames = Frames.of(Size(*pixels.shape[:2]), model)
            placed = await self._workers.run(
                context, _place, pixels, frames.resized, model.image_size
            )
        with context.clock.stage("encode"):
            await self._engine.encode(
                model.name, EncoderInput(placed, frames.resized), slot, context
            )

    async def _attempt(
        self, held: AsyncExitStack, job: Job, context: RequestContext
    ) -> tuple[Encoded, bool]:
        # Who begins the work is told its stages, who joins it how long that took.
        work = context.clock.branch()
        with context.clock.following("join", work):
            flight = self._flights.join(job.key, partial(self._make, job, context, work))
            return await held.enter_async_context(flight)

    @asynccontextmanager
    async def _make(
        self, job: Job, caller: RequestContext, clock: StageClock
    ) -> AsyncIterator[Encoded]:
        """Encode, publish and hold; runs on behalf of everybody who joins, not of *caller*."""
        context = RequestContext(
            principal=caller.principal,
            allowance=caller.allowance,
            request_id=caller.request_id,
            deadline=caller.now() + self._deadline_s,
            priority=caller.priority,
            clock=clock,
        )
        async with AsyncExitStack() as held:
            with clock.running():
                encoded = await self._find_or_make(held, job, context)
            yield encoded

    async def _find_or_make(
        self, held: AsyncExitStack, job: Job, context: RequestContext
    ) -> Encoded:
        clock, store, found = context.clock, self._store, "miss"
        try:
            with clock.stage("cache_get"):
                since = await store.epoch(job.key) if job.since is None else job.since
                # The caller met a miss, then looked at its picture: another flight may have landed.
                lease = store.lease(job.key, again=True, image_sent=True)
                embedding = await held.enter_async_context(lease)
            found = embedding.tier.value
            return Encoded(embedding, cached=True)
        except EmbeddingNotFound:
            pass
        finally:
            clock.rename("cache_get", f"cache_get_{found}")
        slot = await self._into_slot(job, since, context)
        with clock.stage("cache_put"):
            return Encoded(await held.enter_async_context(store.publish(slot)), cached=False)

    async def _into_slot(self, job: Job, since: Epoch, context: RequestContext) -> Slot:
        """Give what is ready to be published."""
        with context.clock.stage("decode_image"):
            pixels = await self._workers.run(context, images.decode, job.image, self._limits)
        with context.clock.stage("cache_put"):
            facts = EmbeddingFacts.of(Size(*pixels.shape[:2]), job.model)
            slot = await self._store.reserve(job.key, facts, job.model.embedding, since=since)
        try:
            await self.encode_pixels(pixels, job.model, slot, context)
        except BaseException:
            await self._store.discard(slot)
            raise
        return slot


def _place(pixels: UInt8Array, resized: Size, side: int) -> UInt8Array:
    return geometry.place_top_left(geometry.resize_image(pixels, resized), side)
