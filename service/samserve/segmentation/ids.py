"""Names of embeddings by content."""

from __future__ import annotations

import hashlib

from samserve.types import EncodedImage, Image, ImageDigest, ModelInfo, RawImage

_DOMAIN = b"samserve.embedding.v1"
_NAMED_DOMAIN = b"samserve.embedding.v2"


def embedding_id(image: Image, model: ModelInfo) -> str:
    """Name the embedding of *image* under *model*: 64 hexadecimal digits.

    SHA-256 over the model's name, its encoder's digest, the preprocessing version, how the bytes
    are to be read, and the SHA-256 of the bytes.  The two levels let a client ask with the inner
    hash before it uploads; hashing the encoded file makes a repeat cost no image decoding.

    The name keeps models with the same encoder apart: the id alone says whose decoder answers.
    Models of earlier exports, whose encoder has no digest of its own, keep the ids of that time.
    """
    of_its_own = model.encoder_digest != model.digest
    parts = (
        *((_NAMED_DOMAIN, model.name.encode()) if of_its_own else (_DOMAIN,)),
        model.encoder_digest.encode(),
        model.preprocessing.encode(),
        _reading(image).encode(),
        _content_sha256(image),
    )
    digest = hashlib.sha256()
    for part in parts:
        # The length before each part keeps ("ab", "c") and ("a", "bc") apart.
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.hexdigest()


def _reading(image: Image) -> str:
    """How the bytes become pixels: equal bytes read differently are different images."""
    if isinstance(image, RawImage):
        return f"raw:{image.layout.value}:{image.size.height}x{image.size.width}"
    return f"encoded:{image.orientation.value}"


def _content_sha256(image: Image) -> bytes:
    if isinstance(image, ImageDigest):
        return image.sha256
    assert isinstance(image, EncodedImage | RawImage)
    return hashlib.sha256(image.data).digest()
