"""Content-addressed embedding ids."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

from samserve.types import (
    Array,
    EmbeddingFacts,
    EncodedImage,
    Image,
    ImageDigest,
    ModelInfo,
    RawImage,
)

PUT_PREFIX = "put_"
"""The start of the ids of PutEmbedding, which no hexadecimal id has."""

_DOMAIN_PUT = b"samserve.embedding.put.v1"
_DOMAIN_V1 = b"samserve.embedding.v1"
_DOMAIN_V2 = b"samserve.embedding.v2"


def embedding_id(image: Image, model: ModelInfo) -> str:
    """Return the id of the embedding of *image* by *model*: 64 hexadecimal digits.

    SHA-256 over the model's name, its encoder's digest, the preprocessing version, the pixel
    layout or orientation with which the bytes are decoded, and the SHA-256 of the bytes.  The two
    levels let a client send only the inner hash before it uploads; the encoded file is hashed, so
    a repeated image is not decoded again.

    The model's name separates models with the same encoder: the id alone selects the decoder.
    Models of earlier exports, whose encoder has no digest of its own, keep their earlier ids.
    """
    has_encoder_digest = model.encoder_digest != model.digest
    parts = (
        *((_DOMAIN_V2, model.name.encode()) if has_encoder_digest else (_DOMAIN_V1,)),
        model.encoder_digest.encode(),
        model.preprocessing.encode(),
        _decoding(image).encode(),
        _content_sha256(image),
    )
    return _digest(parts)


def put_id(facts: EmbeddingFacts, tensors: Mapping[str, Array]) -> str:
    """Return the id of an embedding that comes from a file: `PUT_PREFIX` and 64 digits.

    SHA-256 over the facts, and over the names and SHA-256 of the tensors, which are C-contiguous,
    in the order of their names.  It does not depend on the layout of the file.
    """
    contents = (
        (name.encode(), hashlib.sha256(tensor.data).digest())
        for name, tensor in sorted(tensors.items())
    )
    size = facts.image_size
    parts = (
        _DOMAIN_PUT,
        facts.model_name.encode(),
        facts.encoder_digest.encode(),
        facts.preprocessing.encode(),
        f"{size.height}x{size.width}".encode(),
        *(part for content in contents for part in content),
    )
    return PUT_PREFIX + _digest(parts)


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # The length before each part distinguishes ("ab", "c") from ("a", "bc").
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.hexdigest()


def hashed_bytes(image: Image) -> int:
    """Return how many bytes of the image `embedding_id` hashes."""
    return 0 if isinstance(image, ImageDigest) else len(image.data)


def _decoding(image: Image) -> str:
    """Return how the bytes are decoded: equal bytes decoded differently are different images."""
    if isinstance(image, RawImage):
        return f"raw:{image.layout.value}:{image.size.height}x{image.size.width}"
    return f"encoded:{image.orientation.value}"


def _content_sha256(image: Image) -> bytes:
    if isinstance(image, ImageDigest):
        return image.sha256
    assert isinstance(image, EncodedImage | RawImage)
    return hashlib.sha256(image.data).digest()
