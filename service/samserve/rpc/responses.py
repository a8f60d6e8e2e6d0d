"""Answers of the use cases to protobuf messages, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict

import numpy as np
from google.protobuf.message import Message

from samserve.core import rle
from samserve.errors import ResponseTooLarge
from samserve.models.card import TEXTS
from samserve.security.principal import UNLIMITED, Allowance
from samserve.segmentation.automask.events import Progress, Records, Summary
from samserve.segmentation.automask.options import AutoMaskOptions
from samserve.segmentation.embed import Leased, Pending
from samserve.segmentation.predict import Prediction
from samserve.settings import LimitSettings
from samserve.stages import StageClock
from samserve.types import (
    AutoMaskRecord,
    Candidate,
    CocoRle,
    Mask,
    ModelCard,
    ModelInfo,
    OutputMode,
    Size,
    Transport,
)
from samserve.v1 import samserve_pb2 as pb

# A streamed message stays about this small, so that masks arrive while others are being written.
_BATCH_BYTES = 1 << 20
_FEW = 4

_TRANSPORTS = {
    Transport.IN_PROCESS: pb.TRANSPORT_IN_PROCESS,
    Transport.SHARED_MEMORY: pb.TRANSPORT_SHARED_MEMORY,
    Transport.MESSAGE: pb.TRANSPORT_MESSAGE,
}


def timings(clock: StageClock) -> list[pb.StageTiming]:
    """Write the stages of a call."""
    return [
        pb.StageTiming(stage=stage, duration_ms=seconds * 1000)
        for stage, seconds in clock.seconds.items()
    ]


def embedding(leased: Leased) -> pb.Embedding:
    """Write which embedding was used."""
    facts = leased.embedding.facts
    message = pb.Embedding(
        id=leased.embedding_id,
        image_size=image_size(facts.image_size),
        model=facts.model_name,
        cached=leased.cached,
        stored=pb.STORED_SHARED if leased.embedding.shared else pb.STORED_LOCAL,
    )
    message.expire_time.FromNanoseconds(int(leased.embedding.expires_at * 1e9))
    return message


def found_or_pending(found: Leased | Pending) -> pb.Embedding:
    """Write what has become of a prefetch."""
    if isinstance(found, Leased):
        return embedding(found)
    return pb.Embedding(
        id=found.embedding_id,
        image_size=image_size(found.image_size),
        model=found.model.name,
        stored=pb.STORED_PENDING,
    )


def image_size(size: Size) -> pb.ImageSize:
    """Write a size."""
    return pb.ImageSize(height=size.height, width=size.width)


def prediction(answer: Prediction, mode: OutputMode) -> pb.PredictResponse:
    """Write the candidates of every prompt; timings are added by the caller."""
    return pb.PredictResponse(
        results=[
            pb.PromptResult(masks=[_candidate(candidate, mode) for candidate in candidates])
            for candidates in answer.results
        ],
        embedding=embedding(answer.leased),
    )


def prediction_is_quick(answer: Prediction, mode: OutputMode) -> bool:
    """Tell whether `prediction` takes so little that no thread is worth it."""
    candidates = sum(map(len, answer.results))
    return candidates <= _FEW and mode in (OutputMode.COCO_RLE, OutputMode.LOW_RES_LOGITS)


def progress(event: Progress) -> pb.AutoMaskResponse:
    """Write how far AutoMask is."""
    return pb.AutoMaskResponse(
        progress=pb.AutoMaskProgress(
            evaluated_point_count=event.points_done,
            total_point_count=event.points_total,
            finished_crop_count=event.crops_done,
            total_crop_count=event.crops_total,
        )
    )


def record_batches(event: Records, mode: OutputMode) -> Iterator[pb.AutoMaskResponse]:
    """Write final masks in messages of about a MiB; a larger mask travels alone."""
    batch: list[pb.AutoMaskRecord] = []
    size = 0
    for record in event.records:
        message = _record(record, mode)
        if batch and size + message.ByteSize() > _BATCH_BYTES:
            yield pb.AutoMaskResponse(masks=pb.AutoMaskBatch(records=batch))
            batch, size = [], 0
        batch.append(message)
        size += message.ByteSize()
    if batch:
        yield pb.AutoMaskResponse(masks=pb.AutoMaskBatch(records=batch))


def summary(event: Summary, clock: StageClock) -> pb.AutoMaskResponse:
    """Write the end of an AutoMask stream."""
    return pb.AutoMaskResponse(
        summary=pb.AutoMaskSummary(
            embedding=embedding(event.leased),
            timings=timings(clock),
            filters=[
                pb.FilterCount(filter=count.name, in_count=count.came, out_count=count.kept)
                for count in event.filters
            ],
            mask_count=event.mask_count,
        )
    )


def model_list(
    models: Iterable[ModelInfo],
    transport: Transport,
    limits: LimitSettings,
    allowance: Allowance = UNLIMITED,
) -> pb.ListModelsResponse:
    """Write what is served, the default model first, and what holds for this caller."""
    return pb.ListModelsResponse(
        models=[_model(info, transport, default=index == 0) for index, info in enumerate(models)],
        limits=pb.Limits(
            max_request_bytes=limits.request_bytes,
            max_response_bytes=limits.response_bytes,
            max_image_pixels=_least(limits.image_pixels, allowance.image_pixels),
            max_image_side=limits.image_side,
            max_prompts=_least(limits.prompts, allowance.prompts),
            max_points=limits.points,
            max_points_per_side=limits.points_per_side,
            max_points_per_batch=limits.points_per_batch,
            max_crop_n_layers=limits.crop_n_layers,
        ),
        automask_defaults=pb.AutoMaskOptions(**AutoMaskOptions().as_dict()),
    )


def _least(limit: int, quota: int | None) -> int:
    return limit if quota is None else min(limit, quota)


def checked(message: Message, limits: LimitSettings) -> None:
    """Raise `ResponseTooLarge` for an answer that would not fit."""
    size = message.ByteSize()
    if size > limits.response_bytes:
        raise ResponseTooLarge(
            "output_mode",
            f"the answer would have {size} bytes, over the limit of {limits.response_bytes}; "
            "ask for fewer prompts, for run lengths, or for no logits",
            metadata={"limit": str(limits.response_bytes), "value": str(size)},
        )


def _model(info: ModelInfo, transport: Transport, *, default: bool) -> pb.Model:
    return pb.Model(
        name=info.name,
        family=info.family,
        digest=info.digest,
        description=info.description,
        image_side=info.image_size,
        mask_side=info.mask_size,
        embedding_bytes=info.embedding_bytes,
        capabilities=pb.Capabilities(points=True, boxes=True, masks=True, automask=True),
        default=default,
        transport=_TRANSPORTS[transport],
        card=_card(info.card),
    )


def _card(card: ModelCard) -> pb.ModelCard:
    message = pb.ModelCard(**{name: getattr(card, name) for name in TEXTS})
    if card.parity is not None:
        message.parity.CopyFrom(pb.Parity(**asdict(card.parity)))
    return message


def _candidate(candidate: Candidate, mode: OutputMode) -> pb.Mask:
    message = pb.Mask() if candidate.mask is None else _mask(candidate.mask, mode)
    message.predicted_iou = candidate.predicted_iou
    message.token_index = candidate.token_index
    if candidate.low_res_logits is not None:
        message.low_res_logits = candidate.low_res_logits.astype("<f4").tobytes()
    return message


def _record(record: AutoMaskRecord, mode: OutputMode) -> pb.AutoMaskRecord:
    x, y = record.point
    return pb.AutoMaskRecord(
        mask=_mask(record.mask, mode),
        point=pb.Position(x=x, y=y),
        crop_box=_bounding_box(record.crop_box),
    )


def _mask(mask: Mask, mode: OutputMode) -> pb.Mask:
    message = pb.Mask(
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        area=mask.area,
        bbox=_bounding_box(mask.bbox),
    )
    _write_segmentation(message, mask.rle, mode)
    return message


def _bounding_box(xywh: tuple[float, float, float, float]) -> pb.BoundingBox:
    x, y, width, height = xywh
    return pb.BoundingBox(x=x, y=y, width=width, height=height)


def _write_segmentation(message: pb.Mask, coco: CocoRle, mode: OutputMode) -> None:
    size = image_size(coco.size)
    match mode:
        case OutputMode.COCO_RLE:
            message.coco_rle.CopyFrom(pb.CocoRle(size=size, counts=coco.counts))
        case OutputMode.UNCOMPRESSED_RLE:
            counts = rle.uncompressed(coco)
            message.uncompressed_rle.CopyFrom(pb.UncompressedRle(size=size, counts=counts))
        case OutputMode.BINARY_MASK:
            bits = np.packbits(rle.decode(coco)).tobytes()
            message.binary_mask.CopyFrom(pb.BinaryMask(size=size, bits=bits))
