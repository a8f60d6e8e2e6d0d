"""A deterministic `Engine` without a model, for development and tests.

Each tensor ``[C, h, w]`` of its embedding, C at least 3, holds the mean colours of h by w cells.
Its masks are discs around the mean foreground point, or the ellipse inside the box, or the mask
input slightly enlarged; the mask of token *t* grows with *t*.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from samserve.context import RequestContext
from samserve.engines.base import DecoderOutput, EncoderInput, PromptBatch
from samserve.errors import EngineFailure, PromotionRefused
from samserve.memory.anonymous import AnonymousMemory, Memory
from samserve.memory.slot import Slot
from samserve.models import families
from samserve.types import (
    Array,
    Embedding,
    FloatArray,
    ModelInfo,
    ModelVersion,
    TensorSpec,
    Transport,
    UInt8Array,
)

MODEL = ModelInfo(
    name="fake",
    family="sam1",
    digest="fake-1",
    encoder_digest="fake-1",
    preprocessing="fake-1",
    image_size=1024,
    mask_size=256,
    embedding=(TensorSpec("image_embedding", np.dtype(np.float16), (256, 64, 64)),),
    description="Draws discs around prompts; not a model.",
)

_RADII = (40.0, 20.0, 40.0, 60.0, 30.0)
_IOUS = (0.90, 0.95, 0.92, 0.89, 0.91)
_OBJECT_SCORE_LOGIT = 4.0
_NO_VERSIONS = "the engine 'fake' draws masks: it has no versions of models"


class FakeEngine:
    """Draws masks from prompts alone, for a model of up to five mask tokens.

    ``counts`` holds how often each kind of work was begun, finished and cancelled.
    """

    def __init__(self, *, model: ModelInfo = MODEL) -> None:
        self._held_by: asyncio.Event | None = None
        self._model = model
        family = families.of(model)
        tokens, self._has_score = family.mask_tokens, family.object_score
        self._radii, self._ious = _RADII[:tokens], _IOUS[:tokens]
        self.counts: Counter[str] = Counter()

    def hold(self, until: asyncio.Event) -> None:
        """Make every later encode wait until the event is set, so that a test controls the time."""
        self._held_by = until

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        """See `Engine.models`."""
        return {self._model.name: self._model}

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
        self.counts["encode_begun"] += 1
        try:
            if self._held_by is not None:
                await self._held_by.wait()
        except asyncio.CancelledError:
            self.counts["encode_cancelled"] += 1
            raise
        for tensor in into.tensors.values():
            _write_colours(image.pixels, tensor)
        self.counts["encode_finished"] += 1

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        """See `Engine.decode`."""
        self.counts["decode_begun"] += 1
        specs = tuple(TensorSpec(name, t.dtype, t.shape) for name, t in embedding.tensors.items())
        if specs != self._model.embedding:
            raise EngineFailure(f"the decoder does not accept {specs}")
        output = await asyncio.to_thread(self._draw_all, prompts)
        self.counts["decode_finished"] += 1
        return output

    def _draw_all(self, prompts: PromptBatch) -> DecoderOutput:
        masks = list(prompts.mask_input) or [None] * len(prompts.point_labels)
        logits = np.stack(
            [
                self._draw(coords, labels, mask)
                for coords, labels, mask in zip(
                    prompts.point_coords, prompts.point_labels, masks, strict=True
                )
            ]
        )
        iou = np.tile(np.array(self._ious, dtype=np.float32), (len(logits), 1))
        score = np.full(len(logits), _OBJECT_SCORE_LOGIT, np.float32) if self._has_score else None
        return DecoderOutput(logits, iou, score)

    def _draw(self, coords: FloatArray, labels: FloatArray, mask: FloatArray | None) -> FloatArray:
        side = self._model.mask_size
        scale = side / self._model.image_size
        if np.any(labels == 1):
            centre = coords[labels == 1].mean(axis=0) * scale
            return self._ellipses(centre, np.array([1.0, 1.0]))
        if np.any(labels == 2):
            low, high = coords[labels == 2][0] * scale, coords[labels == 3][0] * scale
            stretch = (high - low) / (2 * _RADII[2])
            return self._ellipses((low + high) / 2, stretch)
        if mask is not None:
            return np.stack([mask + radius / _RADII[1] - 1 for radius in self._radii])
        return np.full((len(self._radii), side, side), -10.0, dtype=np.float32)

    def _ellipses(self, centre_xy: FloatArray, stretch_xy: FloatArray) -> FloatArray:
        """Return logits ``[T, L, L]`` that fall by 1 per pixel across each token's ellipse edge."""
        grid = np.arange(self._model.mask_size, dtype=np.float32) + 0.5
        stretch = np.maximum(stretch_xy, 1e-3)
        x = (grid[None, :] - centre_xy[0]) / stretch[0]
        y = (grid[:, None] - centre_xy[1]) / stretch[1]
        distance = np.hypot(x, y)
        return np.stack([radius - distance for radius in self._radii]).astype(np.float32)

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        """See `Engine.using`."""
        return nullcontext()

    async def prepare(self, version: ModelVersion) -> ModelInfo:
        """See `Engine.prepare`; there is no other version."""
        raise PromotionRefused(_NO_VERSIONS)

    def activate(self, model: str, digest: str) -> None:
        """See `Engine.activate`."""
        if digest != self._model.digest:
            raise PromotionRefused(_NO_VERSIONS)

    async def drain(self, model: str, digest: str) -> None:
        """See `Engine.drain`."""

    async def release(self, model: str, digest: str) -> None:
        """See `Engine.release`."""

    async def ready(self) -> bool:
        """See `Engine.ready`."""
        return True

    async def aclose(self) -> None:
        """See `Engine.aclose`."""


def _write_colours(pixels: UInt8Array, tensor: Array) -> None:
    """Fill a tensor ``[C, h, w]`` with mean colours of h by w cells; other channels are zero."""
    _, rows, columns = tensor.shape
    height, width = pixels.shape[0] // rows, pixels.shape[1] // columns
    # Summing rows first takes a tenth of the time of a mean over both axes.
    by_row = pixels.reshape(rows, height, -1).sum(axis=1, dtype=np.uint32)
    sums = by_row.reshape(rows, columns, width, 3).sum(axis=2, dtype=np.uint32)
    tensor[...] = 0
    tensor[:3] = (sums.astype(np.float32) / (height * width)).transpose(2, 0, 1)
