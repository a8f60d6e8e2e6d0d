"""Validation of fields that several requests have, and their conversion to use case types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from samserve.core import rle
from samserve.errors import InvalidRequest, Violations
from samserve.segmentation.sources import EmbeddingRef, ImageSource, Source
from samserve.types import (
    Box,
    CocoRle,
    EncodedImage,
    HqMode,
    Image,
    ImageDigest,
    Orientation,
    RawImage,
    RawLayout,
    Size,
)
from samserve.v1 import samserve_pb2 as pb

T = TypeVar("T")
E = TypeVar("E", bound=Enum)


def choices(enum: Any, prefix: str, kind: type[E], unset: E | None = None) -> dict[int, E]:
    """Map numbers of a protobuf *enum* to the members of *kind* with the names after *prefix*.

    Number 0 maps to *unset*; without it, 0 is not a valid choice.
    """
    named = {enum.Value(f"{prefix}_{member.name}"): member for member in kind}
    return named if unset is None else {0: unset, **named}


HQ_MODES: dict[int, HqMode | None] = {0: None, **choices(pb.HqMode, "HQ_MODE", HqMode)}
"""Modes by their numbers; None is the default of the family."""

_ORIENTATIONS = choices(pb.Orientation, "ORIENTATION", Orientation, Orientation.EXIF)
_LAYOUTS = choices(pb.RawLayout, "RAW_LAYOUT", RawLayout)
_SHA256_BYTES = 32
# Ids have 64 characters; longer ones are neither looked up nor logged.
_MAX_ID = 128


def image(message: pb.Image) -> Image:
    """Read an image; its pixels are not decoded yet."""
    content = message.WhichOneof("content")
    orientation = choice("image.orientation", message.orientation, _ORIENTATIONS, pb.Orientation)
    if content == "encoded":
        return EncodedImage(message.encoded, orientation)
    if content == "encoded_sha256":
        return _image_digest(message.encoded_sha256, orientation)
    if content == "raw":
        size = message.raw.size
        layout = choice("image.raw.layout", message.raw.layout, _LAYOUTS, pb.RawLayout)
        return RawImage(message.raw.data, Size(size.height, size.width), layout)
    raise InvalidRequest("image.content", "set one of: encoded, raw, encoded_sha256")


def _image_digest(sha256: bytes, orientation: Orientation) -> ImageDigest:
    if len(sha256) != _SHA256_BYTES:
        raise out_of_bounds("image.encoded_sha256", "must have 32 bytes", 32, len(sha256))
    return ImageDigest(sha256, orientation)


def source(message: pb.PredictRequest | pb.AutoMaskRequest) -> Source:
    """Read the source of a request: an embedding or an image."""
    which = message.WhichOneof("source")
    if which == "image":
        return ImageSource(image(message.image))
    if which == "embedding_id":
        return EmbeddingRef(embedding_id(message.embedding_id))
    raise InvalidRequest("source", "set one of: embedding_id, image")


def embedding_id(value: str) -> str:
    """Read an embedding id."""
    if not 1 <= len(value) <= _MAX_ID:
        text = f"must have from 1 to {_MAX_ID} characters"
        raise out_of_bounds("embedding_id", text, _MAX_ID, len(value))
    return value


def box(field: str, message: pb.Box) -> Box:
    """Read a box: finite corners, minimum before maximum."""
    violations = Violations()
    values = {name: getattr(message, name) for name in ("x_min", "y_min", "x_max", "y_max")}
    for name, value in values.items():
        with violations.collect():
            finite(f"{field}.{name}", value)
    for axis in ("x", "y"):
        with violations.collect():
            _increasing(field, axis, values[f"{axis}_min"], values[f"{axis}_max"])
    violations.check()
    return Box(**values)


def _increasing(field: str, axis: str, low: float, high: float) -> None:
    if low >= high:
        text = f"must be greater than {axis}_min, {low:g}"
        raise out_of_bounds(f"{field}.{axis}_max", text, f"{low:g}", f"{high:g}")


def coco_rle(field: str, message: pb.CocoRle) -> CocoRle:
    """Read run lengths that fit their own size; that of the image is compared later."""
    size = Size(message.size.height, message.size.width)
    try:
        rle.validate(size, message.counts)
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error
    return CocoRle(size, message.counts)


def finite(field: str, value: float) -> float:
    """Read a number that is neither infinite nor NaN."""
    if not math.isfinite(value):
        raise InvalidRequest(field, f"must be finite; got {value}", metadata={"value": str(value)})
    return value


def choice(field: str, value: int, choices: Mapping[Any, T], enum: Any) -> T:
    """Read a value of *enum*; errors name it, since clients know names rather than numbers."""
    if value not in choices:
        allowed = ", ".join(enum.Name(choice) for choice in sorted(choices))
        known = value in enum.values()
        got = enum.Name(value) if known else str(value)
        raise InvalidRequest(
            field,
            f"must be one of {allowed}; got {got if known else f'the unknown value {value}'}",
            metadata={"limit": allowed, "value": got},
        )
    return choices[value]


def out_of_bounds(field: str, text: str, limit: object, value: object) -> InvalidRequest:
    """Build the error for a number or a length that is not within its limits."""
    return InvalidRequest(
        field, f"{text}; got {value}", metadata={"limit": str(limit), "value": str(value)}
    )
