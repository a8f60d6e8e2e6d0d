"""Many callers at once: the answers are those of calls made alone, and work is done once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from samserve.app import Running
from samserve.context import RequestContext
from samserve.core import rle
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.types import CocoRle, Embedding, Size
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import chosen, photos, pictures
from tests.conftest import serving, serving_models, settings_with, stub_of
from tests.rpc.errors import finish
from tests.samples import total
from tests.support.engines import encodes_begun
from tests.support.waiting import until

Answers = list[list[Message]]
Call = Callable[[SegmentationServiceStub], Awaitable[list[Message]]]


def without_circumstances(message: Any) -> Message:
    """Drop what may differ between equal calls: times, and whether it was cached."""
    copy = type(message)()
    copy.CopyFrom(message)
    part = copy.summary if isinstance(copy, pb.AutoMaskResponse) else copy
    if not isinstance(part, pb.ListModelsResponse):
        part.ClearField("timings")
        part.embedding.ClearField("cached")
        part.embedding.ClearField("expire_time")
    return copy


def sent(request: Any) -> Call:
    async def call(stub: SegmentationServiceStub) -> list[Message]:
        method = getattr(stub, type(request).__name__.removesuffix("Request"))
        answer = await finish(method(request))
        messages = answer if isinstance(answer, list) else [answer]
        # How often a search reports depends on the machine.
        return [without_circumstances(each) for each in messages if "progress" not in set_of(each)]

    return call


def set_of(message: Message) -> set[str]:
    """Names of the fields that are set."""
    return {field.name for field, _ in message.ListFields()}


def embed(image: pb.Image) -> Call:
    return sent(pb.EmbedRequest(image=image))


def predict(image: pb.Image, *prompts: pb.Prompt) -> Call:
    wanted = {"multimask": pb.MULTIMASK_ALL, "include_low_res_logits": True}
    return sent(pb.PredictRequest(image=image, prompts=prompts, **wanted))


def automask(image: pb.Image) -> Call:
    options = pb.AutoMaskOptions(
        points_per_side=3, pred_iou_thresh=0.3, stability_score_thresh=0.5, crop_n_layers=0
    )
    return sent(pb.AutoMaskRequest(image=image, options=options))


def delete(image: pb.Image) -> Call:
    async def call(stub: SegmentationServiceStub) -> list[Message]:
        embedded = await stub.Embed(pb.EmbedRequest(image=image))
        request = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
        await stub.DeleteEmbedding(request)
        return []

    return call


def mixed_calls() -> list[Call]:
    """64 calls of every RPC over three photographs, one of which is deleted again and again."""
    images = [pb.Image(encoded=data) for data in photos.files()]
    models = sent(pb.ListModelsRequest())
    calls: list[Call] = []
    for index in range(16):
        image = images[index % len(images)]
        x, y = 60 + 17 * index, 40 + 13 * index
        box = pb.Box(x_min=x / 2, y_min=y / 2, x_max=x + 50, y_max=y + 40)
        calls += [
            embed(image),
            predict(image, pictures.click(x, y), pb.Prompt(box=box)),
            predict(image, pb.Prompt(points=[pb.Point(x=x, y=y, label=1)], box=box)),
            [automask(image), delete(images[0]), models, embed(image)][index % 4],
        ]
    return calls


Started = Callable[[], AbstractAsyncContextManager[tuple[Running, SegmentationServiceStub]]]


async def assert_callers_together_get_what_they_get_alone(started: Started) -> None:
    calls = mixed_calls()
    async with started() as (service, stub):
        alone = [await call(stub) for call in calls]
    async with started() as (service, _):
        together = await asyncio.gather(*(_on_own_channel(service, call) for call in calls))

    assert len(calls) == 64
    if chosen.kind.startswith("triton"):
        # Triton batches runs of different callers; a run of another size rounds differently.
        assert_equal_across_batch_shapes(together, alone)
    else:
        assert together == alone


async def test_64_mixed_callers_get_the_answers_of_calls_made_alone() -> None:
    await assert_callers_together_get_what_they_get_alone(serving)


@pytest.mark.slow
@pytest.mark.parametrize("_engine", ["onnx", "triton"], indirect=True, scope="module")
async def test_64_mixed_callers_of_the_default_model_get_the_answers_of_calls_made_alone() -> None:
    await assert_callers_together_get_what_they_get_alone(serving_models)


def assert_equal_across_batch_shapes(together: Answers, alone: Answers) -> None:
    """Hold answers to the same selection and 99.99 % equal pixels."""
    pixels = unequal = 0
    for ours, theirs in zip(together, alone, strict=True):
        pairs = list(zip(masks_of(ours), masks_of(theirs), strict=True))
        pixels += sum(mask.size for _, (_, mask) in pairs)
        for (token, mask), (expected_token, expected) in pairs:
            assert token == expected_token
            unequal += np.count_nonzero(mask != expected)

    assert pixels > 10_000_000
    assert unequal <= 1e-4 * pixels


def masks_of(messages: list[Message]) -> list[tuple[int, np.ndarray]]:
    """Every mask of a call with its token."""
    found = []
    for message in messages:
        if isinstance(message, pb.PredictResponse):
            found += [mask for result in message.results for mask in result.masks]
        if isinstance(message, pb.AutoMaskResponse):
            found += [record.mask for record in message.masks.records]
    return [(mask.token_index, pixels_of(mask)) for mask in found]


def pixels_of(mask: pb.Mask) -> np.ndarray:
    size = mask.coco_rle.size
    return rle.decode(CocoRle(Size(size.height, size.width), mask.coco_rle.counts))


async def _on_own_channel(service: Running, call: Call) -> list[Message]:
    async with stub_of(service.address) as stub:
        return await call(stub)


@pytest.mark.parametrize("cancelled", [0, 50])
async def test_100_embeds_of_one_new_image_encode_once(cancelled: int) -> None:
    hold = asyncio.Event()
    engine = FakeEngine()
    request = pb.EmbedRequest(image=pictures.image(200, 300))
    async with serving(engine=engine) as (_, stub):
        engine.hold(hold)
        calls = [stub.Embed(request) for _ in range(100)]
        pending = [asyncio.ensure_future(finish(call)) for call in calls]
        await encodes_begun(engine, 1)
        random.Random(0).shuffle(calls)
        for call in calls[:cancelled]:
            call.cancel()
        hold.set()
        results = await asyncio.gather(*pending, return_exceptions=True)
    answers = [result for result in results if isinstance(result, pb.EmbedResponse)]

    assert len(answers) == 100 - cancelled
    assert len({answer.embedding.id for answer in answers}) == 1
    assert engine.counts["encode_begun"] - 1 == 1
    assert engine.counts["encode_finished"] - 1 == 1


async def test_30_embeds_run_the_real_encoder_once() -> None:
    image = pb.Image(encoded=photos.files()[0])
    async with serving_models() as (service, stub):
        before = encoder_runs(service, outcome="ok")
        calls = [finish(stub.Embed(pb.EmbedRequest(image=image))) for _ in range(30)]
        answers = await asyncio.gather(*calls)

        assert encoder_runs(service, outcome="ok") - before == 1
    assert sum(not answer.embedding.cached for answer in answers) >= 1


async def test_a_cancelled_embed_stops_the_running_encoder() -> None:
    async with serving_models() as (service, stub):
        registry = service.metrics.registry
        # A run that ends before the loop has seen it is no run to stop: try again then.
        for attempt in range(20):
            call = stub.Embed(pb.EmbedRequest(image=pictures.image(seed=attempt)))
            pending = asyncio.ensure_future(finish(call))
            while not pending.done():
                if total(registry, "samserve_engine_running", network="encoder"):
                    break
                await asyncio.sleep(0.001)
            call.cancel()
            await asyncio.gather(pending, return_exceptions=True)
            await until(lambda all_=1 + attempt: encoder_runs(service) > all_)
            if encoder_runs(service, outcome="cancelled"):
                break

        assert pending.cancelled()
        assert encoder_runs(service, outcome="cancelled") == 1
        assert encoder_runs(service, outcome="ok") == 1 + attempt
        assert service.store.stats().entries == attempt


class HeldDecodes(FakeEngine):
    """Decodes wait for ``go``, all but the first ones."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self._first = first

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        output = await super().decode(model, embedding, prompts, context)
        if self.counts["decode_begun"] > self._first:
            await self.go.wait()
        return output


async def test_a_cancelled_automask_decodes_no_further() -> None:
    engine = HeldDecodes(first=5)
    async with serving(engine=engine) as (service, stub):
        call = stub.AutoMask(pb.AutoMaskRequest(image=pictures.image(100, 100)))
        async for event in call:
            if event.progress.evaluated_point_count:
                break
        call.cancel()
        registry = service.metrics.registry
        await until(lambda: not total(registry, "samserve_inflight_requests"))
        after_cancelling = engine.counts["decode_begun"]
        engine.go.set()
        await stub.Embed(pb.EmbedRequest(image=pictures.image()))

        assert engine.counts["decode_begun"] == after_cancelling < 1024 // 64


async def test_a_store_smaller_than_the_load_serves_every_caller() -> None:
    settings = settings_with(store={"capacity_bytes": 2 << 20})
    async with serving(settings) as (service, stub):
        image = pictures.image()
        answers = await asyncio.gather(
            *(
                finish(stub.Predict(pb.PredictRequest(image=image, prompts=[pictures.click(x)])))
                for x in range(1, 40)
            )
        )

        assert len(answers) == 39
        assert service.store.stats().bytes <= 2 << 20


def encoder_runs(service: Running, **outcome: str) -> float:
    """Runs that have ended, or those that have ended so."""
    labels = {"network": "encoder", **outcome}
    return total(service.metrics.registry, "samserve_engine_runs_total", **labels)
