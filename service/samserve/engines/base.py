"""The port for the two networks of a model: the image encoder and the mask decoder."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from samserve.context import RequestContext
from samserve.memory.anonymous import Memory
from samserve.memory.slot import Slot
from samserve.types import (
    Array,
    Embedding,
    FloatArray,
    ModelInfo,
    ModelVersion,
    Size,
    Transport,
    UInt8Array,
)

LOGITS, IOU, OBJECT_SCORE = "low_res_logits", "predicted_iou", "object_score_logits"
"""Outputs of decoders; the last one is that of families with an object score only."""


@dataclass(frozen=True, slots=True, eq=False)
class EncoderInput:
    """An image as the encoder expects it.

    ``pixels`` is uint8 RGB ``[S, S, 3]`` in the model frame; ``valid`` is the size of the image
    inside it, measured from the top-left corner.  The model ignores pixels outside that area.  It
    is None for a family whose images fill the frame: its encoders have no such input.
    """

    pixels: UInt8Array
    valid: Size | None = None

    @property
    def tensors(self) -> dict[str, Array]:
        """The inputs of the encoder by name, each with a batch axis of 1."""
        tensors: dict[str, Array] = {"image": self.pixels[None]}
        if self.valid is not None:
            size = [[self.valid.height, self.valid.width]]
            tensors["image_size"] = np.array(size, dtype=np.int32)
        return tensors


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """P prompts of N points each on one image, all in the model frame.

    ``point_coords`` float32 ``[P, N, 2]``; ``point_labels`` float32 ``[P, N]`` with SAM's labels
    (1 foreground, 0 background, -1 padding, 2 and 3 the corners of a box); ``mask_input`` float32
    ``[M, L, L]`` with M = P, or M = 0 if no prompt of the batch has a mask.  ``iou_threshold``
    float32 ``[T]``: no masks are needed of a prompt whose predicted IoUs are all below those of
    their token; None if all masks are.
    """

    point_coords: FloatArray
    point_labels: FloatArray
    mask_input: FloatArray
    iou_threshold: FloatArray | None = None

    def iou_thresholds(self, mask_tokens: int) -> FloatArray:
        """Return the decoder's input for ``iou_threshold``, ``[1, T]``; -inf for all masks."""
        if self.iou_threshold is None:
            return np.full((1, mask_tokens), -np.inf, dtype=np.float32)
        return self.iou_threshold[None]


@dataclass(frozen=True, slots=True, eq=False)
class DecoderOutput:
    """All T mask tokens of P prompts; the family defines T.

    ``low_res_logits`` is float32 ``[P, T, L, L]``, ``predicted_iou`` float32 ``[P, T]``.  Logits
    of a prompt without masks (`PromptBatch`) are zeros, unless the decoder computes all masks.  The
    logits may lie in memory that an engine reuses once the last view of them has been released:
    copy what is kept for long.  ``object_score_logits`` is float32 ``[P]``, None for a family
    without them.  ``seconds`` is how long the runtime took, without waiting in a queue of the
    engine.
    """

    low_res_logits: FloatArray
    predicted_iou: FloatArray
    object_score_logits: FloatArray | None = None
    seconds: float = 0.0


class Engine(Protocol):
    """Runs encoders and decoders; safe for concurrent use from one event loop.

    Raises `EngineUnavailable` if the runtime cannot be reached and `EngineFailure` if it fails.
    Every run reports the encoder that it belongs to.  If that differs from the encoder in the facts
    of the embedding, the call raises `WeightsChanged` and its result is invalid: the slot must be
    discarded.  Cancelling a call stops its work where the runtime supports that.  When a call has
    ended, for whatever reason, it no longer writes into its slot, or it has added a future to the
    slot's ``pending_writes``.
    """

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """The served models by name, the default model first."""
        ...

    @property
    def transport(self) -> Transport:
        """The transport of tensors to the runtime that is in use now."""
        ...

    def allocate(self, nbytes: int, *, commit: bool) -> Memory:
        """Map memory for embeddings, which the runtime uses in place where it supports that.

        See `samserve.memory.anonymous.Allocate`.
        """
        ...

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        """Write the embedding of *image* into the tensors of *into*."""
        ...

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """Decode *prompts* on *embedding*; queued work is ordered by ``context.priority``."""
        ...

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        """Decode the call with this version of a model while the block runs.

        The version stays loaded until then, also if another is put into service.
        """
        ...

    async def prepare(self, version: ModelVersion) -> ModelInfo:
        """Load a version beside the one in service, if there is memory for both.

        Raises `PromotionRefused`, or `MemoryExhausted`; then nothing has changed.
        """
        ...

    def activate(self, model: str, digest: str) -> None:
        """Put a prepared version into service: for the calls that begin from now on.

        Raises `PromotionRefused` if it is not prepared.
        """
        ...

    async def drain(self, model: str, digest: str) -> None:
        """Wait until no call uses a version."""
        ...

    async def release(self, model: str, digest: str) -> None:
        """Unload a version.  Raises `PromotionRefused` for the one in service."""
        ...

    async def ready(self) -> bool:
        """Return whether the next call can be expected to succeed."""
        ...

    async def aclose(self) -> None:
        """Stop all work and release all resources."""
        ...
