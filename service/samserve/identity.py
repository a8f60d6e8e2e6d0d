"""Names by content: of the weights of a model, and of embeddings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from samserve.types import EncodedImage, Image, ImageDigest, ModelInfo, RawImage

MODEL_FILE = "model.onnx"
DATA_FILE = "model.onnx.data"
"""Beside a model whose weights do not fit into one file."""

_DOMAIN = b"samserve.embedding.v1"


def embedding_id(image: Image, model: ModelInfo) -> str:
    """Name the embedding of *image* under *model*: 64 hexadecimal digits.

    SHA-256 over the model's digest, the preprocessing version, how the bytes are to be read, and
    the SHA-256 of the bytes.  The two levels let a client ask with the inner hash before it
    uploads; hashing the encoded file makes a repeat cost no image decoding.
    """
    parts = (
        _DOMAIN,
        model.digest.encode(),
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


def pair_digest(encoder: Path, decoder: Path) -> str:
    """Name the weights of a pair by its two ONNX files.

    Hex SHA-256 over 64 bytes: the digest of the encoder, then that of the decoder.  A model's
    digest is the SHA-256 of its file; if it has its weights in a file beside it, the SHA-256 over
    the digests of both.
    """
    return hashlib.sha256(_model_digest(encoder) + _model_digest(decoder)).hexdigest()


def _model_digest(path: Path) -> bytes:
    data = path.with_name(DATA_FILE)
    digest = _file_digest(path)
    return hashlib.sha256(digest + _file_digest(data)).digest() if data.exists() else digest


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _reading(image: Image) -> str:
    """How the bytes become pixels: equal bytes read differently are different pictures."""
    if isinstance(image, RawImage):
        return f"raw:{image.layout.value}:{image.size.height}x{image.size.width}"
    return f"encoded:{image.orientation.value}"


def _content_sha256(image: Image) -> bytes:
    if isinstance(image, ImageDigest):
        return image.sha256
    assert isinstance(image, EncodedImage | RawImage)
    return hashlib.sha256(image.data).digest()
