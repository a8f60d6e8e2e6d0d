"""`TritonEngine`: encoders and decoders on a Triton Inference Server."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import structlog
from tritonclient.grpc import InferResult

from samserve.context import RequestContext, deadline_exceeded
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.triton.connection import InferCall, TritonConnection
from samserve.engines.triton.failures import (
    ENDED,
    RegionUnregistered,
    RequestTimeout,
    Unreachable,
    kind_of,
)
from samserve.engines.triton.health_monitor import HealthMonitor
from samserve.engines.triton.shm_pool import ShmPool
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.engines.triton.tensors import (
    DecoderResponse,
    EncoderResponse,
    decoder_inputs,
    encoder_inputs,
    reported_digest,
)
from samserve.engines.triton.versions import TritonVersions
from samserve.engines.weights import check_weights, weights_changed
from samserve.errors import (
    EngineFailure,
    MemoryExhausted,
    SamserveError,
    WeightsChanged,
)
from samserve.memory.anonymous import AnonymousMemory, Memory
from samserve.memory.posix import SharedMemory, SharedSegment
from samserve.memory.slot import Slot
from samserve.models.repository import Bundle
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.settings import TritonSettings
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, EmbeddingFacts, ModelInfo, ModelVersion, Transport

# If no more than this is left of the deadline, a timeout is attributed to the deadline.
_CLOSE_TO_DEADLINE_S = 0.05


class TritonEngine:
    """Sends each run to Triton, which batches runs of different callers.

    With shared memory, a request refers to its large tensors by region and offset: the encoder
    writes into the slot of the cache, and the decoder reads it there.  Each such request has a
    segment of its own from the pool, which shows when a request without a response has ended.
    """

    def __init__(
        self,
        settings: TritonSettings,
        metrics: Metrics,
        default_model: str = "",
        *,
        max_model_bytes: int = 0,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.triton")
        # The credentials are read by `open`.
        self._connection = TritonConnection(settings.url, settings.channels, credentials=None)
        self._shared = SharedMemory(group=settings.shared_memory_group)
        self._regions = ShmRegions(self._connection, self._shared)
        self._monitor = HealthMonitor(self._connection, self._regions, settings, default_model)
        self._versions = TritonVersions(
            self._connection, self._monitor, self._regions, max_model_bytes
        )
        self._pool = ShmPool(
            self._shared, self._regions, settings.shared_memory_pool_bytes, metrics
        )
        self._arena_is_shared = True
        self._semaphores = {
            "encoder": _semaphores(settings.max_concurrent_encoder_requests),
            "decoder": _semaphores(settings.max_concurrent_decoder_requests),
        }
        for network, semaphores in self._semaphores.items():
            metrics.engine.register_queue(network, partial(_waiting, semaphores))
            # Creates the counter, so that its rate is 0 before the first fallback.
            metrics.triton.shared_memory_fallbacks.labels(network)

    async def open(self) -> None:
        """Wait for Triton; call this once, before anything else.

        Raises `EngineUnavailable` if Triton does not become ready in time, and `Misconfigured` if a
        credentials file is invalid.
        """
        await self._monitor.open()
        self._log.info(
            "connected to Triton",
            url=self._settings.url,
            transport=self.transport.value,
            reason=None if self._regions.accepted else self._regions.rejection or "disabled",
        )

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """See `Engine.models`."""
        return self._monitor.models

    @property
    def transport(self) -> Transport:
        """See `Engine.transport`."""
        shared = self._regions.accepted and self._arena_is_shared
        return Transport.SHARED_MEMORY if shared else Transport.MESSAGE

    def allocate(self, nbytes: int, *, commit: bool) -> Memory:
        """See `Engine.allocate`; falls back to private memory if the settings allow that."""
        if not self._regions.accepted:
            return AnonymousMemory(nbytes)
        try:
            segment = self._shared.create(nbytes, commit=commit)
        except (MemoryExhausted, OSError) as error:
            if self._settings.shared_memory == "required":
                raise MemoryExhausted(
                    f"no shared memory for the local cache tier: {error}"
                ) from error
            self._arena_is_shared = False
            self._log.warning("shared memory unavailable, using messages", reason=str(error))
            return AnonymousMemory(nbytes)
        self._regions.add(segment)
        return segment

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        """See `Engine.encode`."""
        async with self._admitted("encoder", model, into.facts, context) as bundle:
            segment = await self._acquire_segment("encoder", image.pixels.nbytes)
            # Only a request with a segment of its own may write into the slot directly: without
            # one, there is no way to detect when it has ended.
            response = EncoderResponse(into, self._shared if segment is not None else None)
            try:
                inputs = encoder_inputs(image, segment)
                call = InferCall(
                    bundle.graphs["encoder"],
                    bundle.versions["encoder"],
                    inputs,
                    response.outputs(),
                    context.request_id,
                )
                result = await self._infer(call, into.facts, context)
            except BaseException as error:
                if segment is not None:
                    into.pending_writes.extend(self._release_failed(segment, error))
                raise
            if segment is not None:
                self._pool.release(segment)
            response.read(result)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """See `Engine.decode`."""
        count = len(prompts.point_labels)
        async with self._admitted("decoder", model, embedding.facts, context) as bundle:
            if prompts.mask_input.shape[-1] != bundle.info.mask_size:
                # Another decoder of the same encoder was loaded since the call chose the model.
                raise weights_changed(model)
            nbytes = DecoderResponse.nbytes(bundle.info, count)
            segment = await self._acquire_segment("decoder", nbytes)
            response = DecoderResponse(bundle.info, count, segment)
            try:
                # A request without a response may read the embedding later, from a reused slot;
                # its result is discarded.
                shared = self._shared if self._regions.accepted else None
                inputs = decoder_inputs(bundle.info, embedding, prompts, shared)
                call = InferCall(
                    model=bundle.graphs["decoder"],
                    version=bundle.versions["decoder"],
                    inputs=inputs,
                    outputs=response.outputs(),
                    request_id=context.request_id,
                    priority=int(context.priority),
                )
                start = time.perf_counter()
                result = await self._infer(call, embedding.facts, context)
                seconds = time.perf_counter() - start
            except BaseException as error:
                if segment is not None:
                    self._release_failed(segment, error)
                raise
            output = replace(response.read(result), seconds=seconds)
            if segment is not None:
                self._pool.release_after(segment, output.low_res_logits)
            return output

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        """See `Engine.using`."""
        return self._versions.using(model, context)

    async def prepare(self, version: ModelVersion) -> ModelInfo:
        """See `Engine.prepare`."""
        return await self._versions.prepare(version)

    def activate(self, model: str, digest: str) -> None:
        """See `Engine.activate`."""
        self._versions.activate(model, digest)

    async def drain(self, model: str, digest: str) -> None:
        """See `Engine.drain`."""
        await self._versions.drain(model, digest)

    async def release(self, model: str, digest: str) -> None:
        """See `Engine.release`."""
        await self._versions.release(model, digest)

    async def ready(self) -> bool:
        """See `Engine.ready`; returns the state of the last check and sends no request."""
        return self._monitor.healthy

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._connection.aclose)
            stack.push_async_callback(self._regions.aclose)
            stack.push_async_callback(self._monitor.aclose)

    def _release_failed(
        self, segment: SharedSegment, error: BaseException
    ) -> list[asyncio.Future[None]]:
        """Release the segment of a failed request; return a future if it may still be running."""
        if isinstance(error, ENDED):
            self._pool.release(segment)
            return []
        return [self._pool.retire(segment)]

    @asynccontextmanager
    async def _admitted(
        self, network: str, model: str, facts: EmbeddingFacts, context: RequestContext
    ) -> AsyncIterator[Bundle[str]]:
        """Wait for a permit to send a request to Triton, and record the outcome of the run.

        Yields the current model, which may have been replaced during the wait.
        """
        bundle: Bundle[str] | None = None
        try:
            async with self._semaphores[network][model].acquire(context):
                bundle = self._versions.bundle(model, facts, context)
                with self._metrics.engine.run(network, model):
                    yield bundle
        except WeightsChanged:
            await self._refresh_models(model, facts, context)
            raise
        except EngineFailure as error:
            # Other weights may have other tensors; Triton then rejects the request.
            await self._refresh_models(model, facts, context)
            if self._monitor.bundles.get(model) == bundle:
                raise
            raise weights_changed(model) from error

    async def _refresh_models(
        self, model: str, facts: EmbeddingFacts, context: RequestContext
    ) -> None:
        """Refresh the state of Triton's models after a failed run."""
        known = self._monitor.models.get(model)
        # Otherwise the change of the encoder is already known.
        if known is not None and known.encoder_digest == facts.encoder_digest:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._monitor.refresh(), context.remaining_s)

    async def _acquire_segment(self, network: str, nbytes: int) -> SharedSegment | None:
        segment = await self._pool.acquire(nbytes)
        if segment is None and self._regions.accepted:
            self._metrics.triton.shared_memory_fallbacks.labels(network).inc()
        return segment

    async def _infer(
        self, call: InferCall, facts: EmbeddingFacts, context: RequestContext
    ) -> InferResult:
        """Run one inference.  Raises `WeightsChanged` unless it belongs to the encoder of *facts*.

        The known state of the models may be out of date: only the response itself identifies the
        weights that computed it.
        """
        try:
            result = await self._infer_once(call, context)
        except RegionUnregistered:
            # Triton has restarted, or a new arena is not registered yet; the request was not run.
            await self._regions.restore()
            result = await self._infer_once(call, context)
        try:
            check_weights(reported_digest(result), facts)
        except WeightsChanged as error:
            self._metrics.triton.errors.labels(kind_of(error)).inc()
            raise
        return result

    async def _infer_once(self, call: InferCall, context: RequestContext) -> InferResult:
        context.check_deadline()
        try:
            return await self._send(call, context)
        except RequestTimeout as error:
            if context.remaining_s < _CLOSE_TO_DEADLINE_S:
                raise deadline_exceeded(context.clock.current) from None
            limit = f"triton.request_timeout_s is {self._settings.request_timeout_s:g} s"
            raise RequestTimeout(f"{error}: {limit}") from error
        except Unreachable:
            self._monitor.report_failure()
            raise

    async def _send(self, call: InferCall, context: RequestContext) -> InferResult:
        timeout_s = min(context.remaining_s, self._settings.request_timeout_s)
        try:
            return await self._connection.infer(call, timeout_s, context.clock.headers())
        except SamserveError as error:
            self._metrics.triton.errors.labels(kind_of(error)).inc()
            raise


def _waiting(semaphores: Mapping[Any, FairSemaphore]) -> int:
    # A copy, because metrics are read in another thread.
    return sum(semaphore.waiting for semaphore in list(semaphores.values()))


def _semaphores(permits: int) -> defaultdict[Any, FairSemaphore]:
    """Return the limits on concurrent requests to Triton, one for each model."""
    return defaultdict(lambda: FairSemaphore(permits))
