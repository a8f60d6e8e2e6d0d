"""The `Engine` that runs models in this process, with ONNX Runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort
import structlog

from samserve.context import RequestContext
from samserve.engines.base import (
    IOU,
    LOGITS,
    OBJECT_SCORE,
    DecoderOutput,
    EncoderInput,
    PromptBatch,
)
from samserve.engines.onnx_sessions import ORT_ERRORS, open_all, open_bundle
from samserve.engines.versions import Versions, check_memory
from samserve.engines.weights import check_weights, weights_changed
from samserve.errors import EngineFailure, EngineUnavailable, PromotionRefused
from samserve.memory.anonymous import AnonymousMemory, Memory
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.models.digest import DIGEST_OUTPUT, DIGEST_WORDS
from samserve.models.repository import Bundle
from samserve.models.selection import Selection, of_repository
from samserve.models.tensors import IOU_THRESHOLD
from samserve.models.versions import bundle_from, files_of, weight_bytes
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, EmbeddingFacts, ModelInfo, ModelVersion, Transport

T = TypeVar("T")


class OnnxEngine:
    """Runs one encoder and one decoder at a time, each on all its threads.

    ONNX Runtime parallelises inside a run, so concurrent runs would only compete for the same
    cores; queued work is ordered by priority instead.  Cancelling a run sets its terminate flag,
    which ONNX Runtime checks between two operators.

    *models* is a repository, of which all models are served, or a selection.
    """

    def __init__(
        self,
        models: Path | Selection,
        threads: int,
        metrics: Metrics,
        default_model: str = "",
        *,
        max_model_bytes: int = 0,
    ) -> None:
        if isinstance(models, Path):
            models = of_repository(models, default_model)
        self._bundles = open_all(models, threads)
        self._threads, self._max_model_bytes = threads, max_model_bytes
        self._versions: Versions[ort.InferenceSession] = Versions()
        self._files = {
            each.info.name: each for each in models.bundles if each.info.name in self._bundles
        }
        self._prepared_files: dict[tuple[str, str], Bundle[Path]] = {}
        self._log = structlog.get_logger("samserve.models")
        self._metrics = metrics.engine
        self._semaphores = {"encoder": FairSemaphore(1), "decoder": FairSemaphore(1)}
        for network, semaphore in self._semaphores.items():
            self._metrics.register_queue(network, partial(getattr, semaphore, "waiting"))
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="engine")

    @property
    def decoder_files(self) -> Mapping[str, Path]:
        """The ONNX files of the decoders of all served models, by model."""
        return {name: bundle.graphs["decoder"] for name, bundle in self._files.items()}

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """See `Engine.models`."""
        return {name: bundle.info for name, bundle in self._bundles.items()}

    @property
    def transport(self) -> Transport:
        """See `Engine.transport`."""
        return Transport.IN_PROCESS

    def allocate(self, nbytes: int, *, commit: bool) -> Memory:
        """See `Engine.allocate`."""
        return AnonymousMemory(nbytes, commit=commit)

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        """See `Engine.encode`."""
        session = self._with_encoder(model, into.facts).graphs["encoder"]
        feeds = image.tensors

        def call(options: ort.RunOptions) -> None:
            reported = np.empty((1, DIGEST_WORDS), dtype=np.int32)
            binding = session.io_binding()
            binding.bind_output(
                DIGEST_OUTPUT, "cpu", 0, reported.dtype.type, reported.shape, reported.ctypes.data
            )
            for name, array in feeds.items():
                binding.bind_cpu_input(name, array)
            for name, tensor in into.tensors.items():
                # The network writes directly into the slot, so nothing is copied afterwards.
                binding.bind_output(
                    name, "cpu", 0, tensor.dtype.type, (1, *tensor.shape), tensor.ctypes.data
                )
            session.run_with_iobinding(binding, options)
            check_weights(reported[0], into.facts)

        await self._run("encoder", model, context, call)

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """See `Engine.decode`."""
        bundle = context.weights.get(model) or self._bundles[model]
        session, has_score = bundle.graphs["decoder"], families.of(bundle.info).object_score
        feeds = {name: tensor[None] for name, tensor in embedding.tensors.items()} | {
            "point_coords": prompts.point_coords[None],
            "point_labels": prompts.point_labels[None],
            "mask_input": prompts.mask_input[None],
        }
        if bundle.info.skips_masks:
            feeds[IOU_THRESHOLD] = prompts.iou_thresholds(families.of(bundle.info).mask_tokens)

        def call(options: ort.RunOptions) -> DecoderOutput:
            names = [LOGITS, IOU, DIGEST_OUTPUT, *([OBJECT_SCORE] if has_score else [])]
            start = time.perf_counter()
            logits, iou, reported, *scores = session.run(names, feeds, options)
            seconds = time.perf_counter() - start
            check_weights(reported[0], embedding.facts)
            score = scores[0][0, :, 0] if scores else None
            return DecoderOutput(logits[0], iou[0], score, seconds)

        return await self._run("decoder", model, context, call)

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        """See `Engine.using`."""
        bundle = self._versions.find(model, self._bundles)
        if bundle is None:
            raise weights_changed(model.name)
        return self._versions.using(bundle, context)

    async def prepare(self, version: ModelVersion) -> ModelInfo:
        """See `Engine.prepare`."""
        current = self._bundles.get(version.model)
        if current is None:
            raise PromotionRefused(f"no model {version.model!r} is served")
        bundle, _ = bundle_from(version)
        loaded = self._versions.find(bundle.info, self._bundles)
        if loaded is not None:
            return loaded.info
        repository = self._files[version.model].graphs["decoder"].parents[2]
        files = await asyncio.to_thread(files_of, repository, bundle)
        kept = {}
        if bundle.info.encoder_digest == current.info.encoder_digest:
            kept["encoder"] = current.graphs["encoder"]
        new = sum(weight_bytes(path) for role, path in files.graphs.items() if role not in kept)
        check_memory(new, self._loaded_bytes(), self._max_model_bytes, local=True)
        try:
            opened = await asyncio.to_thread(open_bundle, files, self._threads, kept)
        except EngineUnavailable as error:
            raise PromotionRefused(error.message) from error
        key = version.model, version.digest
        self._versions.others[key], self._prepared_files[key] = opened, files
        return opened.info

    def activate(self, model: str, digest: str) -> None:
        """See `Engine.activate`."""
        current = self._bundles.get(model)
        if current is not None and current.info.digest == digest:
            return
        new = self._versions.prepared(model, digest)
        old = self._bundles[model]
        old_key, new_key = (model, old.info.digest), (model, digest)
        self._bundles[model] = self._versions.others.pop(new_key)
        self._versions.others[old_key] = old
        self._prepared_files[old_key] = self._files[model]
        self._files[model] = self._prepared_files.pop(new_key)
        self._log.info("model version in service", model=model, digest=new.info.digest)

    async def drain(self, model: str, digest: str) -> None:
        """See `Engine.drain`."""
        await self._versions.drain(model, digest)

    async def release(self, model: str, digest: str) -> None:
        """See `Engine.release`; calls that still use the version keep its sessions."""
        if model in self._bundles and self._bundles[model].info.digest == digest:
            raise PromotionRefused(f"version {digest[:12]} of {model!r} is in service")
        self._versions.others.pop((model, digest), None)
        self._prepared_files.pop((model, digest), None)

    async def ready(self) -> bool:
        """See `Engine.ready`; models in this process are ready once they are loaded."""
        return True

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _with_encoder(self, model: str, facts: EmbeddingFacts) -> Bundle[ort.InferenceSession]:
        """Return a version with the encoder of an embedding; the one in service if there is none.

        A run of another encoder is discarded.
        """
        current = self._bundles[model]
        if current.info.encoder_digest == facts.encoder_digest:
            return current
        return self._versions.of_encoder(model, facts.encoder_digest) or current

    def _loaded_bytes(self) -> int:
        bundles = (*self._files.values(), *self._prepared_files.values())
        paths = {path for bundle in bundles for path in bundle.graphs.values()}
        return sum(weight_bytes(path) for path in paths)

    async def _run(
        self,
        network: str,
        model: str,
        context: RequestContext,
        call: Callable[[ort.RunOptions], T],
    ) -> T:
        async with self._semaphores[network].acquire(context):
            with self._metrics.run(network, model):
                return await self._run_alone(network, call)

    async def _run_alone(self, network: str, call: Callable[[ort.RunOptions], T]) -> T:
        options = ort.RunOptions()
        running = asyncio.get_running_loop().run_in_executor(self._pool, call, options)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            options.terminate = True
            # The semaphore and the slot stay in use until the run has really ended.
            await _wait_until_done(running)
            raise
        except ORT_ERRORS as error:
            raise EngineFailure(f"the {network} failed") from error


async def _wait_until_done(running: asyncio.Future[T]) -> None:
    """Wait until *running* is done, whatever its outcome, ignoring cancellation."""
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            continue
    running.exception()
