"""Concurrent calls: results equal those of sequential calls, and work is done once."""

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

from tests import engine_choice, photos, sample_images
from tests.conftest import serving, serving_models, settings_with, stub_of
from tests.metric_values import total
from tests.rpc.errors import finish
from tests.support.engines import wait_for_encodes
from tests.support.waiting import until

Results = list[list[Message]]
Call = Callable[[SegmentationServiceStub], Awaitable[list[Message]]]


def without_varying_fields(message: Any) -> Message:
    """Clear the fields that may differ between equal calls: times and ``cached``."""
    copy = type(message)()
    copy.CopyFrom(message)
    part = copy.summary if isinstance(copy, pb.AutoMaskResponse) else copy
    if not isinstance(part, pb.ListModelsResponse):
        part.ClearField("timings")
        part.embedding.ClearField("cached")
        part.embedding.ClearField("expire_time")
    return copy


def call_of(request: Any) -> Call:
    async def call(stub: SegmentationServiceStub) -> list[Message]:
        method = getattr(stub, type(request).__name__.removesuffix("Request"))
        result = await finish(method(request))
        messages = result if isinstance(result, list) else [result]
        # The number of progress messages depends on the machine.
        return [without_varying_fields(each) for each in messages if "progress" not in set_of(each)]

    return call


def set_of(message: Message) -> set[str]:
    """Return the names of the fields that are set."""
    return {field.name for field, _ in message.ListFields()}


def embed(image: pb.Image) -> Call:
    return call_of(pb.EmbedRequest(image=image))


def predict(image: pb.Image, *prompts: pb.Prompt) -> Call:
    options = {"multimask": pb.MULTIMASK_ALL, "include_low_res_logits": True}
    return call_of(pb.PredictRequest(image=image, prompts=prompts, **options))


def automask(image: pb.Image) -> Call:
    options = pb.AutoMaskOptions(
        points_per_side=3, pred_iou_thresh=0.3, stability_score_thresh=0.5, crop_n_layers=0
    )
    return call_of(pb.AutoMaskRequest(image=image, options=options))


def delete(image: pb.Image) -> Call:
    async def call(stub: SegmentationServiceStub) -> list[Message]:
        embedded = await stub.Embed(pb.EmbedRequest(image=image))
        request = pb.DeleteEmbeddingRequest(embedding_id=embedded.embedding.id)
        await stub.DeleteEmbedding(request)
        return []

    return call


def mixed_calls() -> list[Call]:
    """Return 64 calls of every RPC over three photographs, one of which is deleted repeatedly."""
    images = [pb.Image(encoded=data) for data in photos.files()]
    models = call_of(pb.ListModelsRequest())
    calls: list[Call] = []
    for index in range(16):
        image = images[index % len(images)]
        x, y = 60 + 17 * index, 40 + 13 * index
        box = pb.Box(x_min=x / 2, y_min=y / 2, x_max=x + 50, y_max=y + 40)
        calls += [
            embed(image),
            predict(image, sample_images.point_prompt(x, y), pb.Prompt(box=box)),
            predict(image, pb.Prompt(points=[pb.Point(x=x, y=y, label=1)], box=box)),
            [automask(image), delete(images[0]), models, embed(image)][index % 4],
        ]
    return calls


Started = Callable[[], AbstractAsyncContextManager[tuple[Running, SegmentationServiceStub]]]


async def assert_concurrent_results_equal_sequential_results(started: Started) -> None:
    calls = mixed_calls()
    async with started() as (service, stub):
        sequential = [await call(stub) for call in calls]
    async with started() as (service, _):
        concurrent = await asyncio.gather(*(_on_own_channel(service, call) for call in calls))

    assert len(calls) == 64
    if engine_choice.kind.startswith("triton"):
        # Triton batches requests of different calls; another batch size rounds differently.
        assert_equal_across_batch_shapes(concurrent, sequential)
    else:
        assert concurrent == sequential


async def test_64_concurrent_calls_equal_sequential_calls() -> None:
    await assert_concurrent_results_equal_sequential_results(serving)


@pytest.mark.slow
@pytest.mark.parametrize("_engine", ["onnx", "triton"], indirect=True, scope="module")
async def test_64_concurrent_calls_of_the_default_model_equal_sequential_calls() -> None:
    await assert_concurrent_results_equal_sequential_results(serving_models)


def assert_equal_across_batch_shapes(concurrent: Results, sequential: Results) -> None:
    """Require the same tokens and 99.99 % equal pixels."""
    pixels = unequal = 0
    for actual, reference in zip(concurrent, sequential, strict=True):
        pairs = list(zip(masks_of(actual), masks_of(reference), strict=True))
        pixels += sum(mask.size for _, (_, mask) in pairs)
        for (token, mask), (expected_token, expected) in pairs:
            assert token == expected_token
            unequal += np.count_nonzero(mask != expected)

    assert pixels > 10_000_000
    assert unequal <= 1e-4 * pixels


def masks_of(messages: list[Message]) -> list[tuple[int, np.ndarray]]:
    """Return every mask of a call with its token."""
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
    request = pb.EmbedRequest(image=sample_images.image(200, 300))
    async with serving(engine=engine) as (_, stub):
        engine.hold(hold)
        calls = [stub.Embed(request) for _ in range(100)]
        pending = [asyncio.ensure_future(finish(call)) for call in calls]
        await wait_for_encodes(engine, 1)
        random.Random(0).shuffle(calls)
        for call in calls[:cancelled]:
            call.cancel()
        hold.set()
        results = await asyncio.gather(*pending, return_exceptions=True)
    responses = [result for result in results if isinstance(result, pb.EmbedResponse)]

    assert len(responses) == 100 - cancelled
    assert len({response.embedding.id for response in responses}) == 1
    assert engine.counts["encode_begun"] - 1 == 1
    assert engine.counts["encode_finished"] - 1 == 1


async def test_30_embeds_run_the_real_encoder_once() -> None:
    image = pb.Image(encoded=photos.files()[0])
    async with serving_models() as (service, stub):
        before = encoder_runs(service, outcome="ok")
        calls = [finish(stub.Embed(pb.EmbedRequest(image=image))) for _ in range(30)]
        responses = await asyncio.gather(*calls)

        assert encoder_runs(service, outcome="ok") - before == 1
    assert sum(not response.embedding.cached for response in responses) >= 1


async def test_cancelled_embed_stops_the_running_encoder() -> None:
    async with serving_models() as (service, stub):
        registry = service.metrics.registry
        # A run that ends before the loop observes it cannot be cancelled: try again then.
        for attempt in range(20):
            call = stub.Embed(pb.EmbedRequest(image=sample_images.image(seed=attempt)))
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
        assert service.cache.stats().entries == attempt


class PausedDecodes(FakeEngine):
    """Decodes after the first ones wait for ``go``."""

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


async def test_cancelled_automask_stops_decoding() -> None:
    engine = PausedDecodes(first=5)
    async with serving(engine=engine) as (service, stub):
        call = stub.AutoMask(pb.AutoMaskRequest(image=sample_images.image(100, 100)))
        async for event in call:
            if event.progress.evaluated_point_count:
                break
        call.cancel()
        registry = service.metrics.registry
        await until(lambda: not total(registry, "samserve_inflight_requests"))
        after_cancelling = engine.counts["decode_begun"]
        engine.go.set()
        await stub.Embed(pb.EmbedRequest(image=sample_images.image()))

        assert engine.counts["decode_begun"] == after_cancelling < 1024 // 64


async def test_cache_smaller_than_the_load_serves_all_calls() -> None:
    settings = settings_with(cache={"local": {"capacity_bytes": 2 << 20}})
    async with serving(settings) as (service, stub):
        image = sample_images.image()
        responses = await asyncio.gather(
            *(
                finish(
                    stub.Predict(
                        pb.PredictRequest(image=image, prompts=[sample_images.point_prompt(x)])
                    )
                )
                for x in range(1, 40)
            )
        )

        assert len(responses) == 39
        assert service.cache.stats().bytes <= 2 << 20


def encoder_runs(service: Running, **outcome: str) -> float:
    """Count the finished runs, or those with this outcome."""
    labels = {"network": "encoder", **outcome}
    return total(service.metrics.registry, "samserve_engine_runs_total", **labels)
