"""Validation of prompts, and their conversion to the types of the use cases."""

from __future__ import annotations

import math

import numpy as np

from samserve.errors import InvalidRequest, Violations
from samserve.rpc.request_fields import box, choice, choices, coco_rle, finite, out_of_bounds
from samserve.settings import LimitSettings
from samserve.types import (
    BinaryMask,
    Box,
    Label,
    LogitsMask,
    MaskInput,
    Point,
    Prompt,
)
from samserve.v1 import samserve_pb2 as pb

_LABELS = choices(pb.Point.Label, "LABEL", Label)


def prompts(message: pb.PredictRequest, limits: LimitSettings) -> tuple[Prompt, ...]:
    """Read the prompts of a request."""
    count = len(message.prompts)
    if not 1 <= count <= limits.max_prompts:
        text = f"must have from 1 to {limits.max_prompts} entries"
        raise out_of_bounds("prompts", text, limits.max_prompts, count)
    violations = Violations()
    read = []
    for index, prompt in enumerate(message.prompts):
        with violations.collect():
            read.append(_prompt(f"prompts[{index}]", prompt, limits))
    violations.check()
    return tuple(read)


def _prompt(field: str, message: pb.Prompt, limits: LimitSettings) -> Prompt:
    if not (message.points or message.HasField("box") or message.HasField("mask")):
        raise InvalidRequest(field, "set at least one of: points, box, mask")
    if len(message.points) > limits.max_points:
        text = f"must have at most {limits.max_points} entries"
        raise out_of_bounds(f"{field}.points", text, limits.max_points, len(message.points))
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
        label = choice(f"{field}.label", message.label, _LABELS, pb.Point.Label)
    violations.check()
    return Point(message.x, message.y, label)


def _mask(field: str, message: pb.MaskInput) -> MaskInput:
    content = message.WhichOneof("content")
    if content == "binary":
        return BinaryMask(coco_rle(f"{field}.binary", message.binary))
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
