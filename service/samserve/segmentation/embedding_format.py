"""Embeddings as files: safetensors whose header names the model and the size of the image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NoReturn

import numpy as np

from samserve.core import safetensors
from samserve.core.safetensors import Layout, MalformedFile
from samserve.errors import InvalidRequest
from samserve.segmentation import ids
from samserve.types import Array, Embedding, EmbeddingFacts, ModelInfo, Size, UInt8Array

FORMAT = "samserve.embedding.v1"
"""The value of ``format`` in the header; another one after every incompatible change."""
CHUNK_BYTES = 1 << 20
"""The most bytes of a file in one message."""
FIELD = "chunk"
"""The field of requests that errors of files name."""

_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_ID = re.compile(rf"{ids.PUT_PREFIX}[0-9a-f]{{64}}")
_MAX_TEXT = 512


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingFile:
    """The header of a file: what the embedding is of, and where its tensors are.

    ``embedding_id`` is the id that the content must have.
    """

    facts: EmbeddingFacts
    layout: Layout
    embedding_id: str

    def check_model(self, model: ModelInfo) -> None:
        """Raise `InvalidRequest` unless an embedding of *model* has these tensors."""
        if not self.facts.computed_by(model):
            text = (
                f"the file is of another encoder or preprocessing than those of {model.name!r}, "
                "which is served: embed the image again"
            )
            metadata = {"model": model.name, "encoder_digest": model.encoder_digest}
            raise InvalidRequest(FIELD, text, metadata=metadata)
        if {stored.spec for stored in self.layout.tensors} != set(model.embedding):
            tensors = ", ".join(
                f"{spec.name} {spec.dtype} {list(spec.shape)}" for spec in model.embedding
            )
            _reject(f"the tensors are not those of {model.name!r}: {tensors}")

    def tensors(self, payload: UInt8Array, model: ModelInfo) -> dict[str, Array]:
        """Return views of *payload*, one for each tensor of *model*, in the model's order."""
        stored = {each.spec.name: each for each in self.layout.tensors}
        return {
            spec.name: payload[stored[spec.name].start : stored[spec.name].end]
            .view(spec.dtype)
            .reshape(spec.shape)
            for spec in model.embedding
        }


def read_header(header: bytes) -> EmbeddingFile:
    """Parse the header of a file.  Raises `InvalidRequest`."""
    try:
        layout = safetensors.read_header(header)
    except MalformedFile as error:
        raise malformed(error) from error
    facts = layout.metadata
    if facts.get("format") != FORMAT:
        _reject(f"the file's metadata must have the format {FORMAT!r}")
    size = Size(_read_side(facts, "image_height"), _read_side(facts, "image_width"))
    names = ("model", "encoder_digest", "preprocessing")
    model, encoder_digest, preprocessing = (_read_text(facts, name) for name in names)
    embedding_id = facts.get("id", "")
    if not _ID.fullmatch(embedding_id):
        _reject("the file's metadata must have id, which begins with put_")
    facts_of_image = EmbeddingFacts(size, model, encoder_digest, preprocessing)
    return EmbeddingFile(facts_of_image, layout, embedding_id)


def malformed(error: MalformedFile) -> InvalidRequest:
    """Return the error of a file that is not in the format of safetensors."""
    return InvalidRequest(FIELD, f"the file is not a safetensors file: {error}")


def check_content(file: EmbeddingFile, tensors: Mapping[str, Array]) -> None:
    """Raise `InvalidRequest` for another content than the header says, or for infinite values."""
    if ids.put_id(file.facts, tensors) != file.embedding_id:
        _reject("the file has been changed: its content has another id than its metadata says")
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            _reject(f"the tensor {name!r} contains a value that is not finite")


def chunks(embedding: Embedding, embedding_id: str) -> Iterator[bytes]:
    """Yield the file of *embedding* in chunks of at most `CHUNK_BYTES`, one of which is copied.

    The header comes first.  *embedding_id* is the id of the content, `ids.put_id`.
    """
    facts = embedding.facts
    # Larger types first, as other writers do, so that every tensor is aligned.
    tensors = dict(sorted(embedding.tensors.items(), key=lambda each: -each[1].dtype.itemsize))
    metadata = {
        "format": FORMAT,
        "id": embedding_id,
        "model": facts.model_name,
        "encoder_digest": facts.encoder_digest,
        "preprocessing": facts.preprocessing,
        "image_height": str(facts.image_size.height),
        "image_width": str(facts.image_size.width),
    }
    yield safetensors.write_header(metadata, tensors)
    for tensor in tensors.values():
        content = tensor.reshape(-1).view(np.uint8)
        for start in range(0, len(content), CHUNK_BYTES):
            yield content[start : start + CHUNK_BYTES].tobytes()


def _read_side(metadata: Mapping[str, str], name: str) -> int:
    text = metadata.get(name, "")
    if not _NUMBER.fullmatch(text):
        _reject(f"the file's metadata must have {name}, a number of pixels")
    return int(text)


def _read_text(metadata: Mapping[str, str], name: str) -> str:
    text = metadata.get(name, "")
    if not 1 <= len(text) <= _MAX_TEXT:
        _reject(f"the file's metadata must have {name}, of at most {_MAX_TEXT} characters")
    return text


def _reject(text: str) -> NoReturn:
    raise InvalidRequest(FIELD, text)
