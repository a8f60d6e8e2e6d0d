"""Protobuf to answers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields
from datetime import UTC

import numpy as np
import numpy.typing as npt
from google.protobuf.descriptor import EnumDescriptor

from samserve.client.images import Orientation
from samserve.client.results import (
    AutoMaskEvent,
    AutoMaskRecord,
    Catalog,
    Embedding,
    FilterCount,
    Mask,
    Model,
    Prediction,
    Progress,
    Summary,
    Xywh,
)
from samserve.models.card import TEXTS
from samserve.types import ModelCard, Parity
from samserve.v1 import samserve_pb2 as pb


def embedding(
    message: pb.Embedding,
    timings: Iterable[pb.StageTiming],
    orientation: Orientation,
    *,
    durable: bool = False,
) -> Embedding:
    """Read which embedding answered; the answer does not tell *orientation* and *durable*."""
    known = message.HasField("expire_time")
    return Embedding(
        id=message.id,
        image_size=(message.image_size.height, message.image_size.width),
        model=message.model,
        cached=message.cached,
        expires_at=message.expire_time.ToDatetime(tzinfo=UTC) if known else None,
        stored=_name(pb.Stored.DESCRIPTOR, message.stored),
        timings_ms=timings_ms(timings),
        orientation=orientation,
        durable=durable,
    )


def prediction(
    message: pb.PredictResponse, orientation: Orientation, *, durable: bool = False
) -> Prediction:
    """Read the answer of Predict about an embedding that was asked for in this way."""
    return Prediction(
        results=[[_mask(mask) for mask in result.masks] for result in message.results],
        embedding=embedding(message.embedding, message.timings, orientation, durable=durable),
        timings_ms=timings_ms(message.timings),
    )


def automask_events(
    message: pb.AutoMaskResponse, orientation: Orientation, *, durable: bool = False
) -> Iterator[AutoMaskEvent]:
    """Read one message of the stream about an embedding that was asked for in this way.

    Kinds that are not known are passed over.
    """
    match message.WhichOneof("event"):
        case "progress":
            yield _progress(message.progress)
        case "masks":
            yield from (_record(record) for record in message.masks.records)
        case "summary":
            yield _summary(message.summary, orientation, durable=durable)


def catalog(message: pb.ListModelsResponse) -> Catalog:
    """Read what is served."""
    limits = message.limits
    defaults = message.automask_defaults
    return Catalog(
        models=tuple(_model(model) for model in message.models),
        limits={name: getattr(limits, name) for name in limits.DESCRIPTOR.fields_by_name},
        automask_defaults={
            descriptor.name: value
            for descriptor, value in defaults.ListFields()
            if isinstance(value, int | float)
        },
    )


def timings_ms(timings: Iterable[pb.StageTiming]) -> dict[str, float]:
    """Read milliseconds by stage."""
    return {timing.stage: timing.duration_ms for timing in timings}


def _mask(message: pb.Mask) -> Mask:
    size = message.coco_rle.size
    return Mask(
        size=(size.height, size.width),
        counts=message.coco_rle.counts,
        token_index=message.token_index,
        predicted_iou=message.predicted_iou,
        stability_score=message.stability_score,
        area=message.area,
        bbox=_xywh(message.bbox),
        low_res_logits=_logits(message.low_res_logits),
    )


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


def _summary(message: pb.AutoMaskSummary, orientation: Orientation, *, durable: bool) -> Summary:
    return Summary(
        embedding=embedding(message.embedding, message.timings, orientation, durable=durable),
        timings_ms=timings_ms(message.timings),
        filters=tuple(
            FilterCount(count.filter, count.in_count, count.out_count) for count in message.filters
        ),
        mask_count=message.mask_count,
    )


def _model(message: pb.Model) -> Model:
    return Model(
        name=message.name,
        family=message.family,
        digest=message.digest,
        description=message.description,
        image_side=message.image_side,
        mask_side=message.mask_side,
        embedding_bytes=message.embedding_bytes,
        capabilities=tuple(
            descriptor.name for descriptor, value in message.capabilities.ListFields() if value
        ),
        default=message.default,
        transport=_name(pb.Transport.DESCRIPTOR, message.transport),
        card=_card(message.card),
        encoder_digest=message.encoder_digest,
    )


def _card(message: pb.ModelCard) -> ModelCard:
    parity = message.parity
    figures = {field.name: getattr(parity, field.name) for field in fields(Parity)}
    texts = {name: getattr(message, name) for name in TEXTS}
    return ModelCard(**texts, parity=Parity(**figures) if message.HasField("parity") else None)


def _name(enum: EnumDescriptor, value: int) -> str:
    """Name a value without its prefix; empty if it is not told, or newer than this client."""
    known = enum.values_by_number.get(value)
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return known.name.removeprefix(prefix).lower() if value and known else ""
