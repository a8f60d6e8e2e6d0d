"""AutoMask of samserve on recorded inferences, so that an altered step needs no new ones."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from samserve.context import RequestContext
from samserve.core import rle
from samserve.engines.base import DecoderOutput, EncoderInput, Engine, PromptBatch
from samserve.memory.slot import Slot
from samserve.segmentation.automask.events import AutoMaskRecord, FilterCount, Records, Summary
from samserve.types import CocoRle, Embedding, ModelInfo

from tests.segmentation.use_cases import UseCases, image_of

# The batch size of the reference: equal batch shapes give bit-identical outputs.
PROMPTS_PER_BATCH = 64


class RecordingEngine:
    """Replays recorded outputs; runs an inference on the wrapped engine for new inputs."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._embeddings: dict[bytes, dict[str, np.ndarray]] = {}
        self._outputs: dict[bytes, DecoderOutput] = {}

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._engine.models

    def using(self, model: ModelInfo, context: RequestContext) -> AbstractContextManager[None]:
        return self._engine.using(model, context)

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        key = digest(*image.tensors.values())
        if key not in self._embeddings:
            await self._engine.encode(model, image, into, context)
            self._embeddings[key] = {name: t.copy() for name, t in into.tensors.items()}
        for name, tensor in self._embeddings[key].items():
            into.tensors[name][...] = tensor

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        tensors = [embedding.tensors[name] for name in sorted(embedding.tensors)]
        given = (prompts.point_coords, prompts.point_labels, prompts.mask_input)
        key = digest(*tensors, *given, prompts.iou_thresholds(1))
        if key not in self._outputs:
            self._outputs[key] = await self._engine.decode(model, embedding, prompts, context)
        return self._outputs[key]

    async def ready(self) -> bool:
        return True

    async def aclose(self) -> None:
        await self._engine.aclose()


def digest(*arrays: np.ndarray) -> bytes:
    """Return a digest of arrays."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.digest()


async def samserve_auto_mask(
    engine: Engine, image: np.ndarray, options: Mapping[str, Any]
) -> tuple[tuple[AutoMaskRecord, ...], dict[str, FilterCount]]:
    """Run samserve's AutoMask on uint8 RGB ``[h, w, 3]``: records, and counts by filter."""
    use_cases = UseCases(engine, max_prompts_per_batch=PROMPTS_PER_BATCH)
    records: tuple[AutoMaskRecord, ...] = ()
    counts: dict[str, FilterCount] = {}
    events = use_cases.automasker.generate(image_of(image), "", options, RequestContext())
    async for event in events:
        if isinstance(event, Records):
            records += event.records
        elif isinstance(event, Summary):
            counts = {count.name: count for count in event.filters}
    await use_cases.aclose()
    return records, counts


def mask_of(record: AutoMaskRecord) -> np.ndarray:
    """Return the pixels of a record, bool ``[h, w]``."""
    assert isinstance(record.mask.segmentation, CocoRle)
    return rle.decode(record.mask.segmentation)
