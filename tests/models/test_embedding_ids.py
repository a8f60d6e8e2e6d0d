"""Embedding ids depend on everything that changes an embedding."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import numpy as np
from samserve.engines.fake import MODEL
from samserve.segmentation.ids import embedding_id, put_id
from samserve.types import (
    EmbeddingFacts,
    EncodedImage,
    ImageDigest,
    Orientation,
    RawImage,
    RawLayout,
    Size,
)

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


FILE, RAW = EncodedImage(b"file"), RawImage(bytes(6), Size(1, 2))


def test_ids_of_earlier_versions_are_still_valid() -> None:
    own_digest = replace(MODEL, encoder_digest="e" * 64, digest="d" * 64)

    assert [
        embedding_id(image, model) for model in (MODEL, own_digest) for image in (FILE, RAW)
    ] == [
        "8fbc4fbb91f1382cd337c18a41b4dd196a2b213e083939f89f3fd3a4b6680aa7",
        "a491ac7bf2e065060b0173207abe26560206ae8eaaa9b835d22fb1cee9a88fca",
        "e4cb7095c6b345908a8abb12c42bec4a0660b17b366f06c84d89649c4749d306",
        "fccf947a743d354d626391c155705d36fc86818e49f72c2c2e6373fb1043823a",
    ]


def test_id_of_a_file_has_a_kind_of_its_own() -> None:
    facts = EmbeddingFacts.of(Size(48, 64), MODEL)

    found = put_id(facts, {"image_embedding": np.zeros(3, "<f2")})

    assert re.fullmatch("put_[0-9a-f]{64}", found)
    assert found == "put_53c91ed81d87982f8382f11fc41140ba29593b7c831f21c3efb6c097b708a677"
