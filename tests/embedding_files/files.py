"""Files of embeddings as a client could build them, and calls that send them."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from samserve.app import Running
from samserve.settings import Settings
from samserve.types import ModelInfo, TensorSpec
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import settings_with
from tests.support.engines import SMALL_MODEL

Service = tuple[Running, SegmentationServiceStub]
Document = dict[str, Any]

ENABLED = {"get_enabled": True, "put_enabled": True}
MIB = 1 << 20

SMALL = replace(
    SMALL_MODEL,
    embedding=(
        TensorSpec("features", np.dtype("<f2"), (3, 8, 8)),
        TensorSpec("details", np.dtype("<f4"), (3, 4, 4)),
    ),
)
"""A model with two small tensors of different types."""


def enabled(**sections: dict[str, Any]) -> Settings:
    """Return settings of a server with both methods, and with the given sections."""
    files = {**ENABLED, **sections.pop("embedding_files", {})}
    return settings_with(embedding_files=files, **sections)


def tensors_of(model: ModelInfo = SMALL, seed: int = 0) -> dict[str, np.ndarray]:
    """Return random tensors of an embedding of *model*."""
    random = np.random.default_rng(seed)
    return {
        spec.name: random.standard_normal(spec.shape).astype(spec.dtype) for spec in model.embedding
    }


def content_id(facts: Document, tensors: dict[str, np.ndarray]) -> str:
    """Return the id of a file, as `docs/embeddings.md` defines it."""
    parts = [
        b"samserve.embedding.put.v1",
        *(facts[name].encode() for name in ("model", "encoder_digest", "preprocessing")),
        f"{facts['image_height']}x{facts['image_width']}".encode(),
    ]
    for name in sorted(tensors):
        parts += [name.encode(), hashlib.sha256(tensors[name].tobytes()).digest()]
    joined = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
    return "put_" + hashlib.sha256(joined).hexdigest()


def facts_of(model: ModelInfo = SMALL, size: tuple[int, int] = (48, 64)) -> dict[str, str]:
    """Return the metadata of a file without its id."""
    return {
        "format": "samserve.embedding.v1",
        "model": model.name,
        "encoder_digest": model.encoder_digest,
        "preprocessing": model.preprocessing,
        "image_height": str(size[0]),
        "image_width": str(size[1]),
    }


def document_of(facts: dict[str, str], tensors: dict[str, np.ndarray]) -> Document:
    """Return the header of a file."""
    document: Document = {"__metadata__": {**facts, "id": content_id(facts, tensors)}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        document[name] = {
            "dtype": {"f2": "F16", "f4": "F32", "f8": "F64"}[tensor.dtype.str[1:]],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    return document


def join(header: Document | bytes, payload: bytes, length: int | None = None) -> bytes:
    """Return a file of a header and a payload; *length* is that of the header, by default true."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + payload


def build(
    tensors: dict[str, np.ndarray] | None = None,
    facts: dict[str, str] | None = None,
    changes: dict[tuple[str, ...], Any] | None = None,
) -> bytes:
    """Return a valid file; *changes* replaces values of its header by their path, None deletes."""
    tensors = tensors_of() if tensors is None else tensors
    document = copy.deepcopy(document_of(facts or facts_of(), tensors))
    for path, value in (changes or {}).items():
        parent = document
        for name in path[:-1]:
            parent = parent[name]
        if value is None:
            del parent[path[-1]]
        else:
            parent[path[-1]] = value
    return join(document, b"".join(tensor.tobytes() for tensor in tensors.values()))


def split(data: bytes, size: int = MIB) -> list[bytes]:
    """Return the chunks of a file."""
    return [data[start : start + size] for start in range(0, len(data), size)]


async def _messages(chunks: Iterable[bytes]) -> AsyncIterator[pb.PutEmbeddingRequest]:
    for chunk in chunks:
        yield pb.PutEmbeddingRequest(chunk=chunk)


def put(stub: SegmentationServiceStub, chunks: Sequence[bytes] | bytes, **options: Any) -> Any:
    """Begin a PutEmbedding of a file, or of its chunks."""
    parts = split(chunks) if isinstance(chunks, bytes) else chunks
    return stub.PutEmbedding(_messages(parts), **options)


async def get(stub: SegmentationServiceStub, embedding_id: str, **options: Any) -> list[bytes]:
    """Return the chunks of an embedding."""
    request = pb.GetEmbeddingRequest(embedding_id=embedding_id)
    return [message.chunk async for message in stub.GetEmbedding(request, **options)]


async def embed(stub: SegmentationServiceStub, seed: int = 0, **options: Any) -> str:
    """Embed a small image and return the id."""
    request = pb.EmbedRequest(image=sample_images.image(seed=seed))
    response: pb.EmbedResponse = await stub.Embed(request, **options)
    return response.embedding.id
