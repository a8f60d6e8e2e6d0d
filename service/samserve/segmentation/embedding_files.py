"""The use cases GetEmbedding and PutEmbedding: embeddings as files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

import numpy as np

from samserve import images
from samserve.context import RequestContext, deadline_exceeded
from samserve.core import safetensors
from samserve.core.safetensors import MalformedFile
from samserve.errors import (
    CacheUnavailable,
    EmbeddingNotFound,
    InvalidRequest,
    MethodDisabled,
)
from samserve.memory.slot import Slot
from samserve.scheduling.offload import copying
from samserve.scheduling.tenant_limits import TenantLimit
from samserve.segmentation import embedding_format, ids, served
from samserve.segmentation.embed import EmbeddingService
from samserve.segmentation.embedding_format import CHUNK_BYTES, FIELD, EmbeddingFile
from samserve.segmentation.encode import EmbeddingLease, Lookup
from samserve.segmentation.sources import EmbeddingRef
from samserve.types import Array, EmbeddingKey, ModelInfo, UInt8Array

T = TypeVar("T")

_MIN_MEAN_CHUNK = 4 << 10
"""Bytes that chunks must have on average: each is a message, which costs about as much as a call
that the tenant's rate limit counts."""
_FREE_CHUNKS = 64
"""Chunks for which that does not hold."""
_QUICK_HEADER = 4 << 10
"""Bytes of a header that takes a fraction of a millisecond to parse."""


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingFiles:
    """Reads embeddings from the cache as files, and writes files to it.

    ``uploads`` counts the bytes of files that have not arrived completely;
    ``upload_timeout_s`` is how long one may take.
    """

    embeddings: EmbeddingService
    uploads: TenantLimit
    upload_timeout_s: float
    get_enabled: bool = False
    put_enabled: bool = False

    def check_enabled(self, method: str) -> None:
        """Raise `MethodDisabled` unless the operator has enabled *method*, by its name."""
        enabled = {"GetEmbedding": self.get_enabled, "PutEmbedding": self.put_enabled}
        if not enabled[method]:
            raise MethodDisabled(
                f"{method} is not enabled on this server", metadata={"method": method}
            )

    async def get(self, embedding_id: str, context: RequestContext) -> AsyncGenerator[bytes]:
        """Yield the file of an embedding in chunks, and lease it meanwhile.

        Raises `EmbeddingNotFound`.
        """
        async with self.embeddings.lease(EmbeddingRef(embedding_id), "", context) as leased:
            embedding, content_id = leased.embedding, embedding_id
            if not embedding_id.startswith(ids.PUT_PREFIX):
                content_id = await self._hash(
                    context, partial(ids.put_id, embedding.facts, embedding.tensors)
                )
            for chunk in embedding_format.chunks(embedding, content_id):
                yield chunk

    async def put(self, chunks: AsyncIterator[bytes], context: RequestContext) -> EmbeddingLease:
        """Receive a file and publish its embedding, which is returned without a lease on it.

        The header is checked before anything is kept of the payload, and all of the file before a
        slot is reserved.  An equal embedding that the caller's tenant has put before is found in
        the cache.  Raises `InvalidRequest` for a file that does not fit the model, `ModelNotFound`,
        `ImageTooLarge`, `QuotaExceeded`, `Overloaded` for too many bytes of unfinished files, and
        `DeadlineExceeded`.
        """
        with ExitStack() as held:
            try:
                async with asyncio.timeout(self.upload_timeout_s):
                    file, payload = await self._receive(_Upload(chunks), held, context)
            except TimeoutError:
                raise deadline_exceeded("receive") from None
            # The weights may have been replaced meanwhile.
            model = self._check(file, context)
            tensors = file.tensors(payload, model)
            await self._hash(context, partial(embedding_format.check_content, file, tensors))
            return await self._store(file, model, tensors, context)

    async def _hash(self, context: RequestContext, function: Callable[[], T]) -> T:
        with context.clock.stage("hash"):
            return await self.embeddings.workers.run(context, function)

    async def _receive(
        self, upload: _Upload, held: ExitStack, context: RequestContext
    ) -> tuple[EmbeddingFile, UInt8Array]:
        """Receive the header, check it, and receive the payload, whose bytes *held* counts."""
        length = bytearray(safetensors.LENGTH_BYTES)
        await upload.fill(memoryview(length))
        try:
            header = bytearray(safetensors.header_bytes(bytes(length)))
        except MalformedFile as error:
            raise embedding_format.malformed(error) from error
        await upload.fill(memoryview(header))
        with context.clock.stage("prepare"):
            file = await self.embeddings.workers.run_unless(
                len(header) <= _QUICK_HEADER,
                context,
                partial(embedding_format.read_header, bytes(header)),
            )
        model = self._check(file, context)
        self.embeddings.cache.check_quota(context.tenant, model.embedding)
        nbytes = file.layout.payload_bytes
        held.enter_context(self.uploads.acquire(context.tenant, nbytes))
        # Memory that the system provides as it is written.
        payload = np.empty(nbytes, np.uint8)
        await upload.fill(payload.data)
        await upload.check_end()
        return file, payload

    def _check(self, file: EmbeddingFile, context: RequestContext) -> ModelInfo:
        """Return the served model of a file, after checking that it fits the model and limits."""
        size = file.facts.image_size
        model = served.find(self.embeddings.engine.models, file.facts.model_name)
        context.facts.model = model.name
        file.check_model(model)
        images.check_size(FIELD, size, self.embeddings.limits)
        context.allowance.check_image(size.pixels)
        return model

    async def _store(
        self,
        file: EmbeddingFile,
        model: ModelInfo,
        tensors: Mapping[str, Array],
        context: RequestContext,
    ) -> EmbeddingLease:
        cache, embedding_id = self.embeddings.cache, file.embedding_id
        key = EmbeddingKey(context.tenant, embedding_id)
        lease = cache.lease(key, renew=True, image_sent=True)
        async with Lookup(lease, context, EmbeddingNotFound, CacheUnavailable) as embedding:
            if embedding is not None:
                return EmbeddingLease(embedding_id, embedding, model, cached=True)
        with context.clock.stage("cache_put"):
            slot = await cache.reserve(key, file.facts, model.embedding)
            await self._write(slot, tensors)
        published = context.clock.entering("cache_put", cache.publish(slot))
        async with published as written:
            return EmbeddingLease(embedding_id, written, model, cached=False)

    async def _write(self, slot: Slot, tensors: Mapping[str, Array]) -> None:
        """Copy *tensors* into *slot*, or discard it."""
        copied = asyncio.create_task(copying(slot.nbytes, _copy, tensors, slot))
        slot.pending_writes.append(copied)
        try:
            # A cancelled call does not stop the thread that writes to the slot.
            await asyncio.shield(copied)
        except BaseException:
            await self.embeddings.cache.discard(slot)
            raise


@dataclass(slots=True, eq=False)
class _Upload:
    """A file that arrives in chunks.  Raises `InvalidRequest` for a chunk, or for their number."""

    _chunks: AsyncIterator[bytes]
    _count: int = 0
    _received: int = 0
    # What is left of the last chunk.
    _rest: memoryview = field(default_factory=lambda: memoryview(b""))

    async def fill(self, buffer: memoryview) -> None:
        """Receive as many bytes as *buffer* has; raise `InvalidRequest` for a shorter file."""
        filled = 0
        while filled < len(buffer):
            if not self._rest and not await self._next():
                raise InvalidRequest(FIELD, "the file is truncated")
            part = self._rest[: len(buffer) - filled]
            buffer[filled : filled + len(part)] = part
            filled += len(part)
            self._rest = self._rest[len(part) :]

    async def check_end(self) -> None:
        """Raise `InvalidRequest` if the file has more bytes than its header says."""
        if self._rest or await self._next():
            raise InvalidRequest(FIELD, "bytes follow the last tensor of the file")

    async def _next(self) -> bool:
        """Receive a chunk; return False at the end of the file."""
        chunk = await anext(self._chunks, None)
        if chunk is None:
            return False
        self._count += 1
        self._received += len(chunk)
        if not 1 <= len(chunk) <= CHUNK_BYTES:
            raise InvalidRequest(
                FIELD,
                f"must have from 1 to {CHUNK_BYTES} bytes; got {len(chunk)}",
                metadata={"limit": str(CHUNK_BYTES), "value": str(len(chunk))},
            )
        if (self._count - _FREE_CHUNKS) * _MIN_MEAN_CHUNK > self._received:
            raise InvalidRequest(
                FIELD,
                f"must have {_MIN_MEAN_CHUNK} bytes on average",
                metadata={"limit": str(_MIN_MEAN_CHUNK)},
            )
        self._rest = memoryview(chunk)
        return True


def _copy(tensors: Mapping[str, Array], slot: Slot) -> None:
    for name, tensor in tensors.items():
        np.copyto(slot.tensors[name], tensor)
