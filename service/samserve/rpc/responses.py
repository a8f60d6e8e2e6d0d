"""Conversion of results of the use cases to protobuf messages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import TypeVar

from google.protobuf.message import Message

from samserve.context import RequestContext
from samserve.errors import ResponseTooLarge
from samserve.rpc import mask_formats
from samserve.scheduling.offload import is_quick
from samserve.scheduling.thread_pools import Workers
from samserve.segmentation.automask.events import (
    AutoMaskRecord,
    Event,
    Progress,
    Records,
    Summary,
)
from samserve.segmentation.encode import EmbeddingLease
from samserve.segmentation.predict import Candidate, Prediction
from samserve.segmentation.sources import PendingEmbedding
from samserve.settings import LimitSettings
from samserve.stages import StageClock
from samserve.types import Mask, Polygons, Segmentation, UncompressedRle
from samserve.v1 import samserve_pb2 as pb

M = TypeVar("M", bound=Message)

# The size limit of a streamed message, so that masks arrive while others are still encoded.
_BATCH_BYTES = 1 << 20


class ResponseWriter:
    """Builds responses, large ones in a thread.  Raises `ResponseTooLarge`."""

    def __init__(self, limits: LimitSettings, workers: Workers) -> None:
        self._limits = limits
        self._workers = workers

    def embed(
        self, found: EmbeddingLease | PendingEmbedding, context: RequestContext
    ) -> pb.EmbedResponse:
        """Build the response to an Embed."""
        return pb.EmbedResponse(embedding=found_or_pending(found), timings=_timings(context.clock))

    def put(self, stored: EmbeddingLease) -> pb.PutEmbeddingResponse:
        """Build the response to a PutEmbedding."""
        return pb.PutEmbeddingResponse(embedding=embedding(stored))

    async def predict(self, result: Prediction, context: RequestContext) -> pb.PredictResponse:
        """Build the response to a Predict."""
        with context.clock.stage("encode_masks"):
            response = await self._workers.run_unless(
                prediction_is_quick(result), context, partial(prediction, result)
            )
        context.facts.masks = sum(len(each.candidates) for each in result.results)
        response.timings.extend(_timings(context.clock))
        return self._checked(response)

    async def automask(
        self, event: Event, context: RequestContext
    ) -> Iterable[pb.AutoMaskResponse]:
        """Build the messages of one event of an AutoMask."""
        match event:
            case Progress():
                return (progress(event),)
            case Summary():
                facts = context.facts
                facts.masks = event.mask_count
                facts.filters = event.filters
                return (self._checked(summary(event, context.clock)),)
            case Records():
                with context.clock.stage("encode_masks"):
                    batches = await self._workers.run(context, lambda: list(record_batches(event)))
                return map(self._checked, batches)

    def _checked(self, message: M) -> M:
        size, limit = message.ByteSize(), self._limits.max_response_bytes
        if size > limit:
            raise _too_large(message, size, limit)
        return message


def _too_large(message: Message, size: int, limit: int) -> ResponseTooLarge:
    """Build the error, with what to request instead of the masks of *message*."""
    masks = _masks(message)
    logits = sum(len(mask.low_res_logits) for mask in masks)
    metadata = {"limit": str(limit), "value": str(size)}
    mode = next(filter(None, map(mask_formats.smaller_mode, masks)), None)
    if logits > size - logits:
        advice = "request no logits, or send fewer prompts"
    elif mode is not None:
        metadata["suggested_output_mode"] = mode
        advice = f"request {mode}, or send fewer prompts"
    else:
        advice = "send fewer prompts"
    field = "include_low_res_logits" if logits > size - logits else "output_mode"
    text = f"the response would have {size} bytes, over the limit of {limit}; {advice}"
    return ResponseTooLarge(field, text, metadata=metadata)


def _masks(message: Message) -> list[pb.Mask]:
    if isinstance(message, pb.PredictResponse):
        return [mask for result in message.results for mask in result.masks]
    if isinstance(message, pb.AutoMaskResponse):
        return [record.mask for record in message.masks.records]
    return []


def _timings(clock: StageClock) -> list[pb.StageTiming]:
    return [
        pb.StageTiming(stage=stage, duration_ms=seconds * 1000)
        for stage, seconds in clock.seconds.items()
    ]


def embedding(leased: EmbeddingLease) -> pb.Embedding:
    """Build the description of the embedding that was used."""
    facts = leased.embedding.facts
    message = pb.Embedding(
        id=leased.embedding_id,
        image_size=mask_formats.image_size(facts.image_size),
        model=facts.model_name,
        cached=leased.cached,
        stored=pb.STORED_SHARED if leased.embedding.shared else pb.STORED_LOCAL,
    )
    message.expire_time.FromNanoseconds(int(leased.embedding.expires_at * 1e9))
    return message


def found_or_pending(found: EmbeddingLease | PendingEmbedding) -> pb.Embedding:
    """Build the description of an embedding, or of a pending one after a prefetch."""
    if isinstance(found, EmbeddingLease):
        return embedding(found)
    return pb.Embedding(
        id=found.embedding_id,
        image_size=mask_formats.image_size(found.image_size),
        model=found.model.name,
        stored=pb.STORED_PENDING,
    )


def prediction(result: Prediction) -> pb.PredictResponse:
    """Build the response with the candidates of every prompt, without timings."""
    return pb.PredictResponse(
        results=[
            pb.PromptResult(
                masks=[_candidate(candidate) for candidate in each.candidates],
                object_score=each.object_score,
            )
            for each in result.results
        ],
        embedding=embedding(result.lease),
    )


def prediction_is_quick(result: Prediction) -> bool:
    """Return whether `prediction` is too fast to be worth a thread."""
    count = sum(len(each.candidates) for each in result.results)
    if not is_quick(items=count):
        return False
    masks = [candidate.mask for each in result.results for candidate in each.candidates]
    return is_quick(numbers=sum(_numbers(mask.segmentation) for mask in masks if mask is not None))


def _numbers(segmentation: Segmentation) -> int:
    """Return how many numbers there are to serialize, one by one."""
    match segmentation:
        case UncompressedRle(_, runs):
            return len(runs)
        case Polygons():
            return sum(
                corners.size
                for each in segmentation.polygons
                for corners in (each.exterior, *each.holes)
            )
        case _:
            return 0


def progress(event: Progress) -> pb.AutoMaskResponse:
    """Build the progress message of an AutoMask."""
    return pb.AutoMaskResponse(
        progress=pb.AutoMaskProgress(
            evaluated_point_count=event.points_done,
            total_point_count=event.points_total,
            finished_crop_count=event.crops_done,
            total_crop_count=event.crops_total,
        )
    )


def record_batches(event: Records) -> Iterator[pb.AutoMaskResponse]:
    """Yield messages of final masks, each of about 1 MiB; a larger mask is sent alone."""
    batch: list[pb.AutoMaskRecord] = []
    size = 0
    for record in event.records:
        message = _record(record)
        if batch and size + message.ByteSize() > _BATCH_BYTES:
            yield pb.AutoMaskResponse(masks=pb.AutoMaskBatch(records=batch))
            batch, size = [], 0
        batch.append(message)
        size += message.ByteSize()
    if batch:
        yield pb.AutoMaskResponse(masks=pb.AutoMaskBatch(records=batch))


def summary(event: Summary, clock: StageClock) -> pb.AutoMaskResponse:
    """Build the last message of an AutoMask stream."""
    return pb.AutoMaskResponse(
        summary=pb.AutoMaskSummary(
            embedding=embedding(event.lease),
            timings=_timings(clock),
            filters=[
                pb.FilterCount(filter=each.name, in_count=each.count_in, out_count=each.count_out)
                for each in event.filters
            ],
            mask_count=event.mask_count,
        )
    )


def _candidate(candidate: Candidate) -> pb.Mask:
    message = pb.Mask() if candidate.mask is None else _mask(candidate.mask)
    message.predicted_iou = candidate.predicted_iou
    message.token_index = candidate.token_index
    if candidate.low_res_logits is not None:
        message.low_res_logits = candidate.low_res_logits.astype("<f4").tobytes()
    return message


def _record(record: AutoMaskRecord) -> pb.AutoMaskRecord:
    x, y = record.point
    return pb.AutoMaskRecord(
        mask=_mask(record.mask),
        point=pb.Position(x=x, y=y),
        crop_box=_bounding_box(record.crop_box),
    )


def _mask(mask: Mask) -> pb.Mask:
    message = pb.Mask(
        predicted_iou=mask.predicted_iou,
        stability_score=mask.stability_score,
        area=mask.area,
        bbox=_bounding_box(mask.bbox),
    )
    mask_formats.write(message, mask.segmentation)
    return message


def _bounding_box(xywh: tuple[float, float, float, float]) -> pb.BoundingBox:
    x, y, width, height = xywh
    return pb.BoundingBox(x=x, y=y, width=width, height=height)
