"""Conversion of protobuf responses to results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from datetime import UTC
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message

from samserve.client import png_masks
from samserve.client.polygons import Polygon, Polygons, Ring
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskRecord,
    Catalog,
    Embedding,
    EmbedOptions,
    FilterCount,
    Mask,
    Model,
    Prediction,
    Progress,
    Summary,
    Xywh,
)
from samserve.types import ModelCard, Parity
from samserve.v1 import samserve_pb2 as pb

_T = TypeVar("_T", Embedding, Mask, Model, ModelCard, Parity)


def embedding(
    message: pb.Embedding, timings: Iterable[pb.StageTiming], options: EmbedOptions
) -> Embedding:
    """Read the description of an embedding that was requested with *options*."""
    known = message.HasField("expire_time")
    return _from_message(
        Embedding,
        message,
        image_size=(message.image_size.height, message.image_size.width),
        expires_at=message.expire_time.ToDatetime(tzinfo=UTC) if known else None,
        stored=_name(pb.Stored.DESCRIPTOR, message.stored),
        timings_ms=timings_ms(timings),
        **options._asdict(),
    )


def prediction(message: pb.PredictResponse, options: EmbedOptions) -> Prediction:
    """Read the response of Predict; its embedding was requested with *options*."""
    return Prediction(
        results=[[_mask(mask) for mask in result.masks] for result in message.results],
        object_scores=[
            result.object_score if result.HasField("object_score") else None
            for result in message.results
        ],
        embedding=embedding(message.embedding, message.timings, options),
        timings_ms=timings_ms(message.timings),
    )


def automask_events(message: pb.AutoMaskResponse, options: EmbedOptions) -> Iterator[AutoMaskEvent]:
    """Read one message of the stream; its embedding was requested with *options*.

    Unknown kinds of messages are skipped.
    """
    match message.WhichOneof("event"):
        case "progress":
            yield _progress(message.progress)
        case "masks":
            yield from (_record(record) for record in message.masks.records)
        case "summary":
            yield _summary(message.summary, options)


def catalog(message: pb.ListModelsResponse) -> Catalog:
    """Read the served models, limits and defaults."""
    limits = message.limits
    defaults = _scalars(message.automask_defaults)
    return Catalog(
        models=tuple(_model(model, defaults) for model in message.models),
        limits={name: getattr(limits, name) for name in limits.DESCRIPTOR.fields_by_name},
        automask_defaults=defaults,
    )


def _scalars(options: pb.AutoMaskOptions) -> dict[str, float]:
    """Read the numbers and switches that are set."""
    return {
        descriptor.name: value
        for descriptor, value in options.ListFields()
        if isinstance(value, int | float) and descriptor.enum_type is None
    }


def timings_ms(timings: Iterable[pb.StageTiming]) -> dict[str, float]:
    """Read milliseconds by stage."""
    return {timing.stage: timing.duration_ms for timing in timings}


def _mask(message: pb.Mask) -> Mask:
    polygons = message.polygons if message.HasField("polygons") else None
    return _from_message(
        Mask,
        message,
        size=_mask_size(message),
        counts=message.coco_rle.counts,
        runs=tuple(message.uncompressed_rle.counts),
        bits=message.binary_mask.bits,
        polygons=None if polygons is None else _polygons(polygons),
        bbox=_xywh(message.bbox),
        low_res_logits=_logits(message.low_res_logits),
    )


def _mask_size(message: pb.Mask) -> tuple[int, int]:
    """Return height and width of the mask; zeros if it has no pixels."""
    if message.HasField("png"):
        return png_masks.size(message.png)
    kind = message.WhichOneof("segmentation")
    size = getattr(message, kind).size if kind else pb.ImageSize()
    return (size.height, size.width)


def _polygons(message: pb.Polygons) -> Polygons:
    return Polygons(
        size=(message.size.height, message.size.width),
        parts=tuple(
            Polygon(_ring(each.exterior), tuple(_ring(hole) for hole in each.holes))
            for each in message.polygons
        ),
        iou=message.iou,
    )


def _ring(message: pb.Ring) -> Ring:
    return np.array(message.coordinates, dtype=np.float32).reshape(-1, 2)


def _logits(data: bytes) -> npt.NDArray[np.float32] | None:
    if not data:
        return None
    values = np.frombuffer(data, dtype="<f4").astype(np.float32)
    side = round(values.size**0.5)
    return values.reshape(side, side)


def _record(message: pb.AutoMaskRecord) -> AutoMaskRecord:
    return AutoMaskRecord(
        mask=_mask(message.mask),
        point=(message.point.x, message.point.y),
        crop_box=_xywh(message.crop_box),
    )


def _xywh(box: pb.BoundingBox) -> Xywh:
    return (box.x, box.y, box.width, box.height)


def _progress(message: pb.AutoMaskProgress) -> Progress:
    return Progress(
        evaluated_points=message.evaluated_point_count,
        total_points=message.total_point_count,
        finished_crops=message.finished_crop_count,
        total_crops=message.total_crop_count,
    )


def _summary(message: pb.AutoMaskSummary, options: EmbedOptions) -> Summary:
    return Summary(
        embedding=embedding(message.embedding, message.timings, options),
        timings_ms=timings_ms(message.timings),
        filters=tuple(
            FilterCount(count.filter, count.in_count, count.out_count) for count in message.filters
        ),
        mask_count=message.mask_count,
    )


def _model(message: pb.Model, defaults: Mapping[str, float]) -> Model:
    """Read a model; servers that list no defaults for each model have *defaults* for all."""
    own = message.HasField("automask_defaults")
    return _from_message(
        Model,
        message,
        capabilities=tuple(
            descriptor.name for descriptor, value in message.capabilities.ListFields() if value
        ),
        transport=_name(pb.Transport.DESCRIPTOR, message.transport),
        card=_card(message.card),
        automask_defaults=_scalars(message.automask_defaults) if own else defaults,
    )


def _card(message: pb.ModelCard) -> ModelCard:
    compared = message.HasField("parity")
    return _from_message(
        ModelCard, message, parity=_from_message(Parity, message.parity) if compared else None
    )


def _from_message(kind: type[_T], message: Message, **values: Any) -> _T:
    """Create a *kind* from *values*, and from *message* for its other fields."""
    same = {each.name for each in fields(kind)} - set(values)
    return kind(**{name: getattr(message, name) for name in same}, **values)


def _name(enum: EnumDescriptor, value: int) -> str:
    """Return the name of a value without its prefix; empty if unspecified or unknown."""
    known = enum.values_by_number.get(value)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return known.name.removeprefix(prefix).lower() if value and known else ""
