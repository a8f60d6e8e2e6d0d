"""Requests to the types of the use cases; together with `automask_decoding`, the only validator.

What needs the image's size is checked by the use cases, as soon as the size is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import numpy as np

from samserve.core import rle
from samserve.errors import InvalidRequest, Violations
from samserve.segmentation.embed import ById, ByImage, Source
from samserve.settings import LimitSettings
from samserve.types import (
    BinaryMask,
    Box,
    CocoRle,
    EncodedImage,
    Image,
    ImageDigest,
    Label,
    LogitsMask,
    MaskInput,
    Multimask,
    Orientation,
    OutputMode,
    Point,
    Prompt,
    RawImage,
    RawLayout,
    Size,
)
from samserve.v1 import samserve_pb2 as pb

T = TypeVar("T")

_LABELS = {
    pb.Point.LABEL_FOREGROUND: Label.FOREGROUND,
    pb.Point.LABEL_BACKGROUND: Label.BACKGROUND,
}
_ORIENTATIONS = {
    pb.ORIENTATION_UNSPECIFIED: Orientation.EXIF,
    pb.ORIENTATION_EXIF: Orientation.EXIF,
    pb.ORIENTATION_IGNORE: Orientation.IGNORE,
}
_DURABILITIES = {pb.DURABILITY_UNSPECIFIED: False, pb.DURABILITY_DURABLE: True}
_LAYOUTS = {
    pb.RAW_LAYOUT_RGB: RawLayout.RGB,
    pb.RAW_LAYOUT_BGR: RawLayout.BGR,
    pb.RAW_LAYOUT_GRAY: RawLayout.GRAY,
}
_MULTIMASKS = {
    pb.MULTIMASK_UNSPECIFIED: Multimask.AUTO,
    pb.MULTIMASK_AUTO: Multimask.AUTO,
    pb.MULTIMASK_ALL: Multimask.ALL,
    pb.MULTIMASK_SINGLE: Multimask.SINGLE,
}
_PIXEL_MODES = {
    pb.OUTPUT_MODE_UNSPECIFIED: OutputMode.COCO_RLE,
    pb.OUTPUT_MODE_COCO_RLE: OutputMode.COCO_RLE,
    pb.OUTPUT_MODE_UNCOMPRESSED_RLE: OutputMode.UNCOMPRESSED_RLE,
    pb.OUTPUT_MODE_BINARY_MASK: OutputMode.BINARY_MASK,
}
_OUTPUT_MODES = _PIXEL_MODES | {pb.OUTPUT_MODE_LOW_RES_LOGITS: OutputMode.LOW_RES_LOGITS}
# So many prompts of so many bytes, without masks, are read in a fraction of a millisecond.
_FEW, _FEW_BYTES = 4, 1024
_SHA256_BYTES = 32
# Ids are 64 characters; more is not worth a look-up, nor a line in the log.
_MAX_ID = 128


def image(message: pb.Image) -> Image:
    """Read an image; its pixels are not looked at yet."""
    content = message.WhichOneof("content")
    orientation = _choice("image.orientation", message.orientation, _ORIENTATIONS, pb.Orientation)
    if content == "encoded":
        return EncodedImage(message.encoded, orientation)
    if content == "encoded_sha256":
        return _image_digest(message.encoded_sha256, orientation)
    if content == "raw":
        size = message.raw.size
        layout = _choice("image.raw.layout", message.raw.layout, _LAYOUTS, pb.RawLayout)
        return RawImage(message.raw.data, Size(size.height, size.width), layout)
    raise InvalidRequest("image.content", "set one of: encoded, raw, encoded_sha256")


def _image_digest(sha256: bytes, orientation: Orientation) -> ImageDigest:
    if len(sha256) != _SHA256_BYTES:
        raise _out_of_bounds("image.encoded_sha256", "must have 32 bytes", 32, len(sha256))
    return ImageDigest(sha256, orientation)


def durable(message: pb.EmbedRequest) -> bool:
    """Read whether the embedding has to survive a machine."""
    wanted = _choice("durability", message.durability, _DURABILITIES, pb.Durability)
    if wanted and message.prefetch:
        raise InvalidRequest("durability", "leave it out of a prefetch, which waits for nothing")
    return wanted


def source(message: pb.PredictRequest | pb.AutoMaskRequest) -> Source:
    """Read what is to be segmented."""
    which = message.WhichOneof("source")
    if which == "image":
        return ByImage(image(message.image))
    if which == "embedding_id":
        return ById(embedding_id(message.embedding_id))
    raise InvalidRequest("source", "set one of: embedding_id, image")


def embedding_id(value: str) -> str:
    """Read an embedding id."""
    if not 1 <= len(value) <= _MAX_ID:
        text = f"must have from 1 to {_MAX_ID} characters"
        raise _out_of_bounds("embedding_id", text, _MAX_ID, len(value))
    return value


def prompts(message: pb.PredictRequest, limits: LimitSettings) -> tuple[Prompt, ...]:
    """Read the prompts of a request."""
    count = len(message.prompts)
    if not 1 <= count <= limits.prompts:
        text = f"must have from 1 to {limits.prompts} entries"
        raise _out_of_bounds("prompts", text, limits.prompts, count)
    violations = Violations()
    read = []
    for index, prompt in enumerate(message.prompts):
        with violations.collect():
            read.append(_prompt(f"prompts[{index}]", prompt, limits))
    violations.check()
    return tuple(read)


def prompts_are_quick(message: pb.PredictRequest) -> bool:
    """Tell whether `prompts` takes so little that no thread is worth it."""
    # The number first: a request may hold millions of prompts, and this runs on the event loop.
    if len(message.prompts) > _FEW:
        return False
    if sum(prompt.ByteSize() for prompt in message.prompts) > _FEW_BYTES:
        return False
    return not any(prompt.HasField("mask") for prompt in message.prompts)


def multimask(value: int) -> Multimask:
    """Read which candidates are asked for."""
    return _choice("multimask", value, _MULTIMASKS, pb.Multimask)


def output_mode(value: int) -> OutputMode:
    """Read how masks are to be written."""
    return _choice("output_mode", value, _OUTPUT_MODES, pb.OutputMode)


def pixel_mode(value: int) -> OutputMode:
    """Read how masks are to be written where an answer without pixels makes no sense."""
    return _choice("output_mode", value, _PIXEL_MODES, pb.OutputMode)


def box(field: str, message: pb.Box) -> Box:
    """Read a box: finite corners, in order."""
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
        raise InvalidRequest(
            f"{field}.{axis}_max",
            f"must be greater than {axis}_min, {low:g}; got {high:g}",
            metadata={"limit": f"{low:g}", "value": f"{high:g}"},
        )


def finite(field: str, value: float) -> float:
    """Read a number that is neither infinite nor NaN."""
    if not math.isfinite(value):
        raise InvalidRequest(field, f"must be finite; got {value}", metadata={"value": str(value)})
    return value


def _prompt(field: str, message: pb.Prompt, limits: LimitSettings) -> Prompt:
    if not (message.points or message.HasField("box") or message.HasField("mask")):
        raise InvalidRequest(field, "set at least one of: points, box, mask")
    if len(message.points) > limits.points:
        text = f"must have at most {limits.points} entries"
        raise _out_of_bounds(f"{field}.points", text, limits.points, len(message.points))
    violations = Violations()
    points: list[Point] = []
    corners: Box | None = None
    mask: MaskInput | None = None
    for index, point in enumerate(message.points):
        with violations.collect():
            points.append(_point(f"{field}.points[{index}]", point))
    with violations.collect():
        corners = box(f"{field}.box", message.box) if message.HasField("box") else None
    with violations.collect():
        mask = _mask(f"{field}.mask", message.mask) if message.HasField("mask") else None
    violations.check()
    return Prompt(tuple(points), corners, mask)


def _point(field: str, message: pb.Point) -> Point:
    violations = Violations()
    label = Label.FOREGROUND
    with violations.collect():
        finite(f"{field}.x", message.x)
    with violations.collect():
        finite(f"{field}.y", message.y)
    with violations.collect():
        label = _choice(f"{field}.label", message.label, _LABELS, pb.Point.Label)
    violations.check()
    return Point(message.x, message.y, label)


def _mask(field: str, message: pb.MaskInput) -> MaskInput:
    content = message.WhichOneof("content")
    if content == "binary":
        return BinaryMask(_coco_rle(f"{field}.binary", message.binary))
    if content == "low_res_logits":
        return LogitsMask(_logits(f"{field}.low_res_logits", message.low_res_logits))
    raise InvalidRequest(f"{field}.content", "set one of: low_res_logits, binary")


def _logits(field: str, data: bytes) -> np.ndarray:
    side = math.isqrt(len(data) // 4)
    if side == 0 or side * side * 4 != len(data):
        raise InvalidRequest(
            field,
            f"must hold a square of float32 values (mask_side * mask_side * 4 bytes); "
            f"got {len(data)} bytes",
            metadata={"value": str(len(data))},
        )
    logits = np.frombuffer(data, dtype="<f4").reshape(side, side).astype(np.float32)
    if not np.isfinite(logits).all():
        raise InvalidRequest(field, "must be finite")
    return logits


def _coco_rle(field: str, message: pb.CocoRle) -> CocoRle:
    size = Size(message.size.height, message.size.width)
    try:
        rle.validate(size, message.counts)
    except ValueError as error:
        raise InvalidRequest(field, str(error)) from error
    return CocoRle(size, message.counts)


def _choice(field: str, value: int, choices: Mapping[Any, T], enum: Any) -> T:
    """Read a value of *enum*, whose names a client knows; numbers are what travels."""
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


def _out_of_bounds(field: str, text: str, limit: int, value: int) -> InvalidRequest:
    return InvalidRequest(
        field, f"{text}; got {value}", metadata={"limit": str(limit), "value": str(value)}
    )
