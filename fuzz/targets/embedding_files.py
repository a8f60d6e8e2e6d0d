"""`segmentation.embedding_format`: files of embeddings that clients send.

An input is one byte of flags, and a file.  With a flag, the lengths of header and payload are
corrected; with another, the id as well, so that the content is checked.
"""

from __future__ import annotations

import json
import re
from random import Random
from typing import Any

import numpy as np
from samserve.core import safetensors
from samserve.core.safetensors import MalformedFile
from samserve.segmentation import embedding_format, ids
from samserve.types import Array, Embedding, EmbeddingFacts, ModelInfo, Size, TensorSpec

from fuzz.target import Rejected

_VALID_LENGTH, _VALID_ID = 1, 2
_SPECS = (
    TensorSpec("features", np.dtype("<f2"), (2, 3, 3)),
    TensorSpec("details", np.dtype("<f4"), (5,)),
)
_MODEL = ModelInfo("fake", "sam1", "d", "e" * 8, "sam-1", 64, 16, _SPECS)
_FACTS = EmbeddingFacts(Size(6, 9), "fake", "e" * 8, "sam-1")
_ID = re.compile(rb"put_[0-9a-f]{64}")
# Values for any place of a header.
_VALUES = (
    *(None, True, 0, 1, 5, 20, 36, -1, 2**31, 2**64, 1.0, "F16", "F32", "9", "x" * 600, "\ud800"),
    *("\n", [], {}, [0, 36], [36, 56], [2, 3, 3], [5], {"a": "b"}),
)
WORDS = (
    *(b"__metadata__", b"dtype", b"shape", b"data_offsets", b"F16", b"F32", b"F64", b"BF16"),
    *(b"format", b"model", b"encoder_digest", b"preprocessing", b"image_height", b"image_width"),
    *(b"[]", b"{}", b"null", b"true", b"1e9", b"\\ud800", b"-1", b"id", b"put_"),
)


def run(data: bytes) -> None:
    """Parse a file, and check its content as the server does."""
    flags, content = (data or b"\0")[0], data[1:]
    if flags & _VALID_LENGTH:
        content = with_valid_length(content)
    start = safetensors.LENGTH_BYTES
    try:
        nbytes = safetensors.header_bytes(content[:start])
    except MalformedFile as error:
        raise Rejected(str(error)) from error
    header, payload = content[start : start + nbytes], content[start + nbytes :]
    file = embedding_format.read_header(header)
    _check_layout(file)
    file.check_model(_MODEL)
    if flags & _VALID_LENGTH:
        payload = payload[: file.layout.payload_bytes].ljust(file.layout.payload_bytes, b"\0")
    if len(payload) != file.layout.payload_bytes:
        raise Rejected("truncated, or too long")
    tensors = file.tensors(np.frombuffer(payload, np.uint8), _MODEL)
    if flags & _VALID_ID:
        valid = ids.put_id(file.facts, tensors)
        header = _ID.sub(valid.encode(), header)
        file = embedding_format.read_header(header)
    embedding_format.check_content(file, tensors)
    _check_written_again(file, tensors)


def _check_layout(file: embedding_format.EmbeddingFile) -> None:
    """Check that the tensors fill the payload that the header describes, each once."""
    used = np.zeros(min(file.layout.payload_bytes, 1 << 16), np.uint8)
    for tensor in file.layout.tensors:
        used[tensor.start : tensor.end] += 1
        assert tensor.end - tensor.start == tensor.spec.nbytes
    assert (used == 1).all()


def _check_written_again(file: embedding_format.EmbeddingFile, tensors: dict[str, Array]) -> None:
    """Check that the embedding gives a file with the same content and id."""
    assert all(np.isfinite(tensor).all() for tensor in tensors.values())
    embedding = Embedding(tensors, file.facts, 0.0)
    parts = list(embedding_format.chunks(embedding, file.embedding_id))
    again = embedding_format.read_header(parts[0][safetensors.LENGTH_BYTES :])
    assert (again.facts, again.embedding_id) == (file.facts, file.embedding_id)
    payload = np.frombuffer(b"".join(parts[1:]), np.uint8)
    embedding_format.check_content(again, again.tensors(payload, _MODEL))


def with_valid_length(content: bytes) -> bytes:
    """Return a file whose length is that of its header, up to the last bracket at depth 0."""
    text = content[safetensors.LENGTH_BYTES :]
    depth = 0
    for at, byte in enumerate(text):
        depth += (byte == ord("{")) - (byte == ord("}"))
        if byte == ord("}") and depth <= 0:
            spaces = len(text) - at - 1 - len(text[at + 1 :].lstrip(b" "))
            return (at + 1 + spaces).to_bytes(safetensors.LENGTH_BYTES, "little") + text
    return content


def mutate(data: bytes, random: Random) -> bytes:
    """Change one value of the header, or one byte of the payload; flags correct what follows."""
    content = data[1:]
    end = safetensors.LENGTH_BYTES + int.from_bytes(content[: safetensors.LENGTH_BYTES], "little")
    header, payload = content[safetensors.LENGTH_BYTES : end], bytearray(content[end:])
    try:
        document = json.loads(header)
    except (ValueError, RecursionError):
        return random.choice(seeds())
    if payload and random.random() < 0.4:
        payload[random.randrange(len(payload))] = random.randrange(256)
    else:
        document = _changed(document, random)
    header = json.dumps(document).encode()
    flags = random.choice((0, _VALID_LENGTH, _VALID_LENGTH | _VALID_ID))
    length = len(header).to_bytes(safetensors.LENGTH_BYTES, "little")
    return bytes([flags]) + length + header + bytes(payload)


def _changed(value: Any, random: Random) -> Any:
    """Replace, or remove, a value somewhere inside of *value*."""
    if not isinstance(value, dict | list) or not value or random.random() < 0.1:
        return random.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = random.choice(list(keys))
    if random.random() < 0.1:
        del value[key]
    else:
        value[key] = _changed(value[key], random)
    return value


def seeds() -> list[bytes]:
    """Return valid files, and files of other programs and of other models."""
    random = Random(0)
    tensors = {
        spec.name: np.frombuffer(random.randbytes(spec.nbytes), np.uint8).view(spec.dtype)
        for spec in _SPECS
    }
    finite = {
        spec.name: np.nan_to_num(tensors[spec.name], posinf=1, neginf=1).reshape(spec.shape)
        for spec in _SPECS
    }
    valid = _file(_FACTS, finite)
    infinite = _file(_FACTS, {**finite, "details": np.full(5, np.inf, "<f4")})
    others = (
        _file(EmbeddingFacts(Size(6, 9), "fake", "f", "sam-1"), finite),
        _file(_FACTS, {"features": finite["features"]}),
        safetensors.write_header({}, finite),
        json.dumps({"a": 1}).encode(),
        b"",
    )
    flags = (0, _VALID_LENGTH, _VALID_LENGTH | _VALID_ID)
    return [
        *(bytes([flag]) + valid for flag in flags),
        *(bytes([_VALID_LENGTH | _VALID_ID]) + each for each in (infinite, *others)),
        *(b"\0" + each for each in others),
    ]


def _file(facts: EmbeddingFacts, tensors: dict[str, Array]) -> bytes:
    embedding = Embedding(tensors, facts, 0.0)
    return b"".join(embedding_format.chunks(embedding, ids.put_id(facts, tensors)))
