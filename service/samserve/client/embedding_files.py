"""Embeddings as safetensors files: the client's methods, and the chunks of a file."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeAlias

from samserve.client import requests, responses
from samserve.client.calls import Call, get_method
from samserve.client.results import Embedding, EmbedOptions
from samserve.v1 import samserve_pb2 as pb

FileLike: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview | Iterable[bytes]
"""A path, the bytes of a file, or parts of them in order, such as an open binary file."""

_CHUNK_BYTES = 1 << 20


class EmbeddingFileCalls:
    """The methods of `Client` for files; in a class of their own for its size only."""

    def _begin(self, request_id: str) -> Call:
        raise NotImplementedError

    async def get_embedding(self, embedding: Embedding | str, *, request_id: str = "") -> bytes:
        """Return an embedding of the server's cache as a safetensors file.

        Raises `MethodDisabled` unless the operator has enabled it.
        """
        request = pb.GetEmbeddingRequest(embedding_id=requests.id_of(embedding))
        async with aclosing(self._begin(request_id).stream(get_method, request)) as messages:
            return b"".join([message.chunk async for message in messages])

    async def put_embedding(self, file: FileLike, *, request_id: str = "") -> Embedding:
        """Cache the embedding of a file as `get_embedding` returns it; safe to repeat.

        Raises `InvalidArgument` for a file that the server does not accept, `ModelNotFound` if it
        does not serve the model, and `MethodDisabled` unless the operator has enabled it.
        """
        async with aclosing(_chunks(file)) as chunks:
            response = await self._begin(request_id).put_embedding(chunks)
        return responses.embedding(response.embedding, (), EmbedOptions())


async def _chunks(file: FileLike) -> AsyncGenerator[bytes]:
    """Yield the chunks of a file; reading and building them does not block the event loop."""
    parts = _parts(file)
    while (part := await asyncio.to_thread(next, parts, None)) is not None:
        yield part


def _parts(file: FileLike) -> Iterator[bytes]:
    """Yield a file in parts of the size of a chunk, except for the last one."""
    if isinstance(file, bytes | bytearray | memoryview):
        content = memoryview(file).cast("B")
        for start in range(0, len(content), _CHUNK_BYTES):
            yield bytes(content[start : start + _CHUNK_BYTES])
    elif isinstance(file, str | os.PathLike):
        with Path(file).open("rb") as opened:
            while part := opened.read(_CHUNK_BYTES):
                yield part
    else:
        yield from _joined(file)


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the bytes of *parts*, which may have any size, as parts of the size of a chunk."""
    buffer = bytearray()
    for part in parts:
        buffer += part
        while len(buffer) >= _CHUNK_BYTES:
            yield bytes(buffer[:_CHUNK_BYTES])
            del buffer[:_CHUNK_BYTES]
    if buffer:
        yield bytes(buffer)
