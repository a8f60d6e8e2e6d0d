"""`TritonEngine`: encoders and decoders on a Triton Inference Server."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import structlog
from tritonclient.grpc import InferResult

from samserve.context import RequestContext, deadline_exceeded
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.engines.triton.connection import InferCall, TritonConnection
from samserve.engines.triton.failures import ENDED, NoAnswer, RegionUnknown, Unreachable, kind_of
from samserve.engines.triton.health_monitor import HealthMonitor
from samserve.engines.triton.shm_pool import ShmPool
from samserve.engines.triton.shm_regions import ShmRegions
from samserve.engines.triton.tensors import (
    DecoderAnswer,
    EncoderAnswer,
    decoder_inputs,
    encoder_inputs,
    said_weights,
)
from samserve.engines.weights import check_weights, weights_changed
from samserve.errors import (
    EngineFailure,
    EngineUnavailable,
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
from samserve.types import Embedding, EmbeddingFacts, ModelInfo, Transport

# A deadline that has this little left has caused a timeout that came from elsewhere.
_CLOSE_TO_DEADLINE_S = 0.05


class TritonEngine:
    """Sends each run to Triton, which batches runs of different callers.

    With shared memory in force a request names its large tensors by region and offset: the encoder
    writes into the slot of the store, the decoder reads it there.  Each such request has a scratch
    segment of its own, which is how it is known when a request that was lost has ended.
    """

    def __init__(self, settings: TritonSettings, metrics: Metrics, default_model: str = "") -> None:
        self._settings = settings
        self._metrics = metrics
        self._log = structlog.get_logger("samserve.triton")
        # Its credentials are read when it is opened.
        self._connection = TritonConnection(settings.url, settings.channels, credentials=None)
        self._shared = SharedMemory(group=settings.shared_memory_group)
        self._regions = ShmRegions(self._connection, self._shared)
        self._monitor = HealthMonitor(self._connection, self._regions, settings, default_model)
        self._pool = ShmPool(self._shared, self._regions, settings.scratch_bytes, metrics)
        self._arena_is_shared = True
        self._gates = {
            "encoder": _gates(settings.encoder_in_flight),
            "decoder": _gates(settings.decoder_in_flight),
        }
        for network, gates in self._gates.items():
            metrics.engine.register_queue(network, partial(_waiting, gates))
            # So that their rate is 0 until there is one.
            metrics.triton.message_fallbacks.labels(network)

    async def open(self) -> None:
        """Wait for Triton; call this once, before anything else.

        Raises `EngineUnavailable` if Triton does not come up in time, and `Misconfigured` if a file
        of credentials cannot be used.
        """
        await self._monitor.open()
        self._log.info(
            "model server found",
            url=self._settings.url,
            transport=self.transport.value,
            reason=None if self._regions.accepted else self._regions.refusal or "switched off",
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
        """See `Engine.allocate`; falls back to memory of this process if that is allowed."""
        if not self._regions.accepted:
            return AnonymousMemory(nbytes)
        try:
            segment = self._shared.create(nbytes, commit=commit)
        except (MemoryExhausted, OSError) as error:
            if self._settings.shared_memory == "required":
                raise MemoryExhausted(
                    f"no shared memory for the embedding store: {error}"
                ) from error
            self._arena_is_shared = False
            self._log.warning("embeddings will travel in messages", reason=str(error))
            return AnonymousMemory(nbytes)
        self._regions.want(segment)
        return segment

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        """See `Engine.encode`."""
        async with self._admitted("encoder", model, into.facts, context) as bundle:
            scratch = await self._take_scratch("encoder", image.pixels.nbytes)
            # Only a request with a segment of its own may write into the slot by itself: without
            # one, there is no way to tell when it has ended.
            answer = EncoderAnswer(into, self._shared if scratch is not None else None)
            try:
                inputs = encoder_inputs(image, scratch)
                call = InferCall(
                    bundle.graphs["encoder"], inputs, answer.outputs(), context.request_id
                )
                result = await self._infer(call, into.facts, context)
            except BaseException as error:
                if scratch is not None:
                    into.late_writers.extend(self._end(scratch, error))
                raise
            if scratch is not None:
                self._pool.give_back(scratch)
            answer.read(result)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """See `Engine.decode`."""
        count = len(prompts.point_labels)
        async with self._admitted("decoder", model, embedding.facts, context) as bundle:
            if prompts.mask_input.shape[-1] != bundle.info.mask_size:
                # Another decoder of the same encoder was found since the call chose the model.
                raise weights_changed(model)
            scratch = await self._take_scratch("decoder", DecoderAnswer.nbytes(bundle.info, count))
            answer = DecoderAnswer(bundle.info, count, scratch)
            try:
                # A lost request may read the embedding too late, from a slot that is used again:
                # its answer is discarded.
                shared = self._shared if self._regions.accepted else None
                inputs = decoder_inputs(embedding, prompts, shared)
                call = InferCall(
                    model=bundle.graphs["decoder"],
                    inputs=inputs,
                    outputs=answer.outputs(),
                    request_id=context.request_id,
                    priority=int(context.priority),
                )
                result = await self._infer(call, embedding.facts, context)
            except BaseException as error:
                if scratch is not None:
                    self._end(scratch, error)
                raise
            output = answer.read(result)
            if scratch is not None:
                self._pool.give_back_after(scratch, output.low_res_logits)
            return output

    async def ready(self) -> bool:
        """See `Engine.ready`; asks nothing, Triton is being watched."""
        return self._monitor.healthy

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._connection.aclose)
            stack.push_async_callback(self._regions.aclose)
            stack.push_async_callback(self._monitor.aclose)

    def _bundle(self, model: str, facts: EmbeddingFacts) -> Bundle[str]:
        """Find the model whose encoder made, or is to make, an embedding; never another encoder."""
        bundle = self._monitor.bundles.get(model)
        if bundle is None:
            raise EngineUnavailable(f"the model server does not serve this {model!r} any more")
        if bundle.info.encoder_digest != facts.encoder_digest:
            raise weights_changed(model)
        return bundle

    def _end(self, scratch: SharedSegment, error: BaseException) -> list[asyncio.Future[None]]:
        """Take back the segment of a request that failed; return what ends when it does."""
        if isinstance(error, ENDED):
            self._pool.give_back(scratch)
            return []
        return [self._pool.retire(scratch)]

    @asynccontextmanager
    async def _admitted(
        self, network: str, model: str, facts: EmbeddingFacts, context: RequestContext
    ) -> AsyncIterator[Bundle[str]]:
        """Wait for a place among what Triton is given at once, and count how the run ends.

        Yields the model as it is then: another one may have been found during the wait.
        """
        bundle: Bundle[str] | None = None
        try:
            async with self._gates[network][model].hold(context):
                bundle = self._bundle(model, facts)
                with self._metrics.engine.run(network, model):
                    yield bundle
        except WeightsChanged:
            await self._look_again(model, facts, context)
            raise
        except EngineFailure as error:
            # Other weights may have other tensors, which Triton refuses without running them.
            await self._look_again(model, facts, context)
            if self._monitor.bundles.get(model) == bundle:
                raise
            raise weights_changed(model) from error

    async def _look_again(self, model: str, facts: EmbeddingFacts, context: RequestContext) -> None:
        """Have what is known of Triton's models be newer than a run that went wrong."""
        known = self._monitor.models.get(model)
        # Else it is known already that the encoder is not there any more.
        if known is not None and known.encoder_digest == facts.encoder_digest:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._monitor.look_again(), context.remaining_s)

    async def _take_scratch(self, network: str, nbytes: int) -> SharedSegment | None:
        scratch = await self._pool.take(nbytes)
        if scratch is None and self._regions.accepted:
            self._metrics.triton.message_fallbacks.labels(network).inc()
        return scratch

    async def _infer(
        self, call: InferCall, facts: EmbeddingFacts, context: RequestContext
    ) -> InferResult:
        """Run one inference.  Raises `WeightsChanged` unless it is of the encoder of *facts*.

        What is known of the models may be out of date by now, or may have been so before: only the
        answer itself says what has computed it.
        """
        try:
            result = await self._infer_once(call, context)
        except RegionUnknown:
            # Triton has restarted, or has not heard of a new arena yet; it did nothing so far.
            await self._regions.restore()
            result = await self._infer_once(call, context)
        try:
            check_weights(said_weights(result), facts)
        except WeightsChanged as error:
            self._metrics.triton.errors.labels(kind_of(error)).inc()
            raise
        return result

    async def _infer_once(self, call: InferCall, context: RequestContext) -> InferResult:
        context.check_deadline()
        try:
            return await self._send(call, context)
        except NoAnswer as error:
            if context.remaining_s < _CLOSE_TO_DEADLINE_S:
                raise deadline_exceeded(context.clock.current) from None
            given = f"triton.answer_s gives it {self._settings.answer_s:g} s"
            raise NoAnswer(f"{error}: {given}") from error
        except Unreachable:
            self._monitor.report_failure()
            raise

    async def _send(self, call: InferCall, context: RequestContext) -> InferResult:
        timeout_s = min(context.remaining_s, self._settings.answer_s)
        try:
            return await self._connection.infer(call, timeout_s, context.clock.headers())
        except SamserveError as error:
            self._metrics.triton.errors.labels(kind_of(error)).inc()
            raise


def _waiting(gates: Mapping[Any, FairSemaphore]) -> int:
    # A copy, because metrics are read in another thread.
    return sum(gate.waiting for gate in list(gates.values()))


def _gates(permits: int) -> defaultdict[Any, FairSemaphore]:
    """Bounds on what Triton is given at once, one for each model."""
    return defaultdict(lambda: FairSemaphore(permits))
