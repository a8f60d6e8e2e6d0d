"""The `Engine` that runs models in this process, with ONNX Runtime."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import onnxruntime as ort
import structlog
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

from samserve.context import RequestContext
from samserve.engines.base import (
    IOU,
    LOGITS,
    OBJECT_SCORE,
    DecoderOutput,
    EncoderInput,
    PromptBatch,
)
from samserve.engines.weights import check_weights
from samserve.errors import EngineFailure, EngineUnavailable
from samserve.memory.anonymous import AnonymousMemory, Memory
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.models.digest import DIGEST_OUTPUT, DIGEST_WORDS, STAMP_KEY, digest_of_note
from samserve.models.repository import Bundle, default_first
from samserve.models.selection import Selection, load_failure, of_repository
from samserve.models.tensors import IOU_THRESHOLD, GraphTensors, check_tensors
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.telemetry.metrics import Metrics
from samserve.types import Embedding, ModelInfo, Transport

T = TypeVar("T")

_ORT_ERRORS = (
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoSuchFile,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    # Of runs with an `IOBinding`, whatever the cause.
    RuntimeError,
)


class OnnxEngine:
    """Runs one encoder and one decoder at a time, each on all its threads.

    ONNX Runtime parallelises inside a run, so concurrent runs would only compete for the same
    cores; queued work is ordered by priority instead.  Cancelling a run sets its terminate flag,
    which ONNX Runtime checks between two operators.

    *models* is a repository, of which all models are served, or a selection.
    """

    def __init__(
        self, models: Path | Selection, threads: int, metrics: Metrics, default_model: str = ""
    ) -> None:
        if isinstance(models, Path):
            models = of_repository(models, default_model)
        self._bundles = _open_all(models, threads)
        self.decoder_files: Mapping[str, Path] = {
            each.info.name: each.graphs["decoder"]
            for each in models.bundles
            if each.info.name in self._bundles
        }
        """The ONNX files of the decoders of all served models, by model."""
        self._metrics = metrics.engine
        self._semaphores = {"encoder": FairSemaphore(1), "decoder": FairSemaphore(1)}
        for network, semaphore in self._semaphores.items():
            self._metrics.register_queue(network, partial(getattr, semaphore, "waiting"))
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="engine")

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
        session = self._bundles[model].graphs["encoder"]
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
        bundle = self._bundles[model]
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

    async def ready(self) -> bool:
        """See `Engine.ready`; models in this process are ready once they are loaded."""
        return True

    async def aclose(self) -> None:
        """See `Engine.aclose`."""
        self._pool.shutdown(wait=False, cancel_futures=True)

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
        except _ORT_ERRORS as error:
            raise EngineFailure(f"the {network} failed") from error


async def _wait_until_done(running: asyncio.Future[T]) -> None:
    """Wait until *running* is done, whatever its outcome, ignoring cancellation."""
    while not running.done():
        try:
            await asyncio.wait([running])
        except asyncio.CancelledError:
            continue
    running.exception()


def _open_all(selection: Selection, threads: int) -> dict[str, Bundle[ort.InferenceSession]]:
    """Load all models, the default one first; without optional ones that cannot be loaded."""
    bundles = {bundle.info.name: bundle for bundle in selection.bundles}
    problems, opened = list(selection.problems), {}
    for name in default_first(bundles, selection.default):
        try:
            opened[name] = _open(bundles[name], threads)
        except EngineUnavailable as error:
            if name not in selection.stored:
                raise
            failure = load_failure(name, bundles[name].graphs["encoder"], error)
            if name not in selection.optional:
                raise EngineUnavailable(failure) from error
            problems.append(failure)
    log = structlog.get_logger("samserve.models")
    for problem in problems:
        log.error("model not served", error=problem)
    return opened


def _open(bundle: Bundle[Path], threads: int) -> Bundle[ort.InferenceSession]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin between runs would compete with image decoding and mask processing.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # With a pattern, the second run allocates one block for all its tensors, while the arena keeps
    # those of the first run: much more memory, and no time saved.
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    try:
        sessions = {
            role: ort.InferenceSession(path, options, ["CPUExecutionProvider"])
            for role, path in bundle.graphs.items()
        }
    except _ORT_ERRORS as error:
        raise EngineUnavailable(f"model {bundle.info.name!r} cannot be loaded: {error}") from error
    for role, path in bundle.graphs.items():
        _check_graph(path, sessions[role], bundle.info)
        check_tensors(role, _tensors(sessions[role]), bundle.info)
    return Bundle(bundle.info, sessions)


def _check_graph(path: Path, session: ort.InferenceSession, info: ModelInfo) -> None:
    """Reject a graph that does not belong to the encoder that its configuration names.

    The files may also have been replaced since the configuration was read.
    """
    outputs = {output.name for output in session.get_outputs()}
    note = session.get_modelmeta().custom_metadata_map.get(STAMP_KEY, "")
    if DIGEST_OUTPUT not in outputs or digest_of_note(note) != info.encoder_digest:
        stamped, expected = digest_of_note(note)[:12] or "none", info.encoder_digest[:12]
        raise EngineUnavailable(
            f"model {info.name!r}: {path} has the digest {stamped}, its configuration {expected}; "
            f"start again if the files are being replaced, otherwise update them with: "
            f"samserve models upgrade {path.parents[2]}"
        )


def _tensors(session: ort.InferenceSession) -> GraphTensors:
    """Return the tensors that the graph itself declares, whatever its configuration does."""
    inputs, outputs = (
        # Open axes have names instead of lengths.
        {
            each.name: [dim if isinstance(dim, int) else -1 for dim in each.shape[1:]]
            for each in tensors
        }
        for tensors in (session.get_inputs(), session.get_outputs())
    )
    return GraphTensors(inputs, outputs)
