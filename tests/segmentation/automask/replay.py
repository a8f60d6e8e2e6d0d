"""AutoMask of the product on recorded networks, so that a changed step costs no inference."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np
from samserve.context import RequestContext
from samserve.core import rle
from samserve.engines.base import DecoderOutput, EncoderInput, Engine, PromptBatch
from samserve.images import ImageLimits
from samserve.memory.slot import Slot
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask.events import FilterCount, Records, Summary
from samserve.segmentation.automask.generator import AutoMasker
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import ByImage, Embedder
from samserve.stores.local.store import MemoryStore
from samserve.types import AutoMaskRecord, Embedding, ModelInfo, RawImage, Size

# As many as the reference decodes at once: equal batch shapes give equal bits.
PROMPTS_PER_RUN = 64


class RecordingEngine:
    """Answers from memory what it was asked before, and asks the engine behind it otherwise."""

    def __init__(self, behind: Engine) -> None:
        self._behind = behind
        self._embeddings: dict[bytes, dict[str, np.ndarray]] = {}
        self._outputs: dict[bytes, DecoderOutput] = {}

    @property
    def models(self) -> Mapping[str, ModelInfo]:
        return self._behind.models

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        key = digest(image.pixels, np.array([image.valid.height, image.valid.width]))
        if key not in self._embeddings:
            await self._behind.encode(model, image, into, context)
            self._embeddings[key] = {name: t.copy() for name, t in into.tensors.items()}
        for name, tensor in self._embeddings[key].items():
            into.tensors[name][...] = tensor

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        tensors = [embedding.tensors[name] for name in sorted(embedding.tensors)]
        key = digest(*tensors, prompts.point_coords, prompts.point_labels)
        if key not in self._outputs:
            self._outputs[key] = await self._behind.decode(model, embedding, prompts, context)
        return self._outputs[key]

    async def ready(self) -> bool:
        return True

    async def aclose(self) -> None:
        await self._behind.aclose()


def digest(*arrays: np.ndarray) -> bytes:
    """Name the content of arrays."""
    hashed = hashlib.sha256()
    for array in arrays:
        hashed.update(np.ascontiguousarray(array).tobytes())
    return hashed.digest()


async def product_auto_mask(
    engine: Engine, picture: np.ndarray, options: AutoMaskOptions
) -> tuple[tuple[AutoMaskRecord, ...], dict[str, FilterCount]]:
    """Run the product's AutoMask on uint8 RGB ``[h, w, 3]``: records, and counts by filter."""
    workers = Workers(2)
    store = MemoryStore(64 << 20, ttl_s=600)
    embedder = Embedder(engine, store, workers, ImageLimits(10**8, 10**5), encode_deadline_s=600)
    source = ByImage(RawImage(picture.tobytes(), Size(*picture.shape[:2])))
    records: tuple[AutoMaskRecord, ...] = ()
    counts: dict[str, FilterCount] = {}
    search = AutoMasker(embedder, PROMPTS_PER_RUN).search(source, "", options, RequestContext())
    async for event in search:
        if isinstance(event, Records):
            records = event.records
        elif isinstance(event, Summary):
            counts = {count.name: count for count in event.filters}
    workers.close()
    return records, counts


def mask_of(record: AutoMaskRecord) -> np.ndarray:
    """Give the pixels of a record, bool ``[h, w]``."""
    return rle.decode(record.mask.rle)
