"""Embedding ids depend on everything that changes an embedding."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from samserve.engines.fake import MODEL
from samserve.segmentation.ids import embedding_id
from samserve.types import EncodedImage, ImageDigest, Orientation, RawImage, RawLayout, Size

DATA = bytes(range(256)) * 3


def test_same_image_and_model_have_the_same_id() -> None:
    assert embedding_id(EncodedImage(DATA), MODEL) == embedding_id(EncodedImage(DATA), MODEL)


def test_digest_of_a_file_has_the_same_id_as_the_file() -> None:
    digest = ImageDigest(hashlib.sha256(DATA).digest())

    assert embedding_id(digest, MODEL) == embedding_id(EncodedImage(DATA), MODEL)


def test_id_depends_on_image_orientation_layout_size_model_and_preprocessing() -> None:
    raw = RawImage(DATA, Size(16, 16), RawLayout.RGB)
    ids = [
        embedding_id(EncodedImage(DATA), MODEL),
        embedding_id(EncodedImage(DATA + b"x"), MODEL),
        embedding_id(EncodedImage(DATA, Orientation.IGNORE), MODEL),
        embedding_id(EncodedImage(DATA), replace(MODEL, encoder_digest="other weights")),
        embedding_id(EncodedImage(DATA), replace(MODEL, encoder_digest="other weights", name="b")),
        embedding_id(EncodedImage(DATA), replace(MODEL, preprocessing="other resize")),
        embedding_id(raw, MODEL),
        embedding_id(replace(raw, size=Size(8, 32)), MODEL),
        embedding_id(replace(raw, layout=RawLayout.BGR), MODEL),
    ]

    assert len(set(ids)) == len(ids)


def test_id_is_a_complete_sha256_digest() -> None:
    assert len(embedding_id(EncodedImage(DATA), MODEL)) == 64
