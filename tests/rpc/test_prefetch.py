"""Prefetches: pending embeddings, the calls that join them, their limits and their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve.app import Running
from samserve.context import Priority, RequestContext
from samserve.engines.base import EncoderInput
from samserve.engines.fake import FakeEngine
from samserve.memory.slot import Slot
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.security.principal import WARM_UP
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.rpc.errors import Failure, failure_of, read
from tests.support.engines import wait_for_encodes
from tests.support.waiting import TIMEOUT_S, until


class Client:
    """Makes the calls of these tests; encodes wait until ``go`` is set."""

    def __init__(self, service: Running, engine: FakeEngine, stub: SegmentationServiceStub) -> None:
        self.service, self.engine, self.stub, self.go = service, engine, stub, asyncio.Event()

    def call(self, seed: int = 0, **fields: Any) -> Any:
        return self.stub.Embed(pb.EmbedRequest(image=sample_images.image(seed=seed), **fields))

    async def prefetch(self, seed: int = 0) -> pb.Embedding:
        return (await self.call(seed, prefetch=True)).embedding

    def predict(self, embedding_id: str, **options: Any) -> Any:
        request = pb.PredictRequest(
            embedding_id=embedding_id, prompts=[sample_images.point_prompt()]
        )
        return self.stub.Predict(request, **options)

    async def is_found(self, embedding_id: str) -> bool:
        try:
            return bool((await self.predict(embedding_id)).results)
        except grpc.aio.AioRpcError as error:
            if read(error).reason != "EMBEDDING_NOT_FOUND":
                raise
            return False

    async def delete(self, embedding_id: str) -> None:
        await self.stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))

    async def failure(self, seed: int = 0, **fields: Any) -> Failure:
        return await failure_of(self.call(seed, **fields))

    async def finished(self, count: int) -> None:
        """Wait until so many encodes have succeeded, in addition to the one of the warm-up."""
        await until(lambda: self.engine.counts["encode_finished"] >= 1 + count)

    async def in_flight(self, **calls: int) -> None:
        """Wait until so many calls of each method are in flight."""
        sample = self.service.metrics.registry.get_sample_value
        for method, count in calls.items():
            labels = {"grpc_method": method}
            await until(lambda c=count, at=labels: sample("samserve_inflight_requests", at) == c)


@asynccontextmanager
async def paused_service(**sections: dict[str, Any]) -> AsyncIterator[Client]:
    sections.setdefault("server", {})["grace_period_s"] = 0.2
    engine = FakeEngine()
    async with serving(settings_with(**sections), engine=engine) as (service, stub):
        client = Client(service, engine, stub)
        engine.hold(client.go)
        yield client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with paused_service() as client:
        yield client


async def test_prefetch_returns_at_once_and_predict_waits_for_it(client: Client) -> None:
    pending = await client.prefetch()
    assert pending.stored == pb.STORED_PENDING
    assert (pending.image_size.height, pending.image_size.width) == (48, 64)
    assert (pending.model, pending.cached) == ("fake", False)
    assert not pending.HasField("expire_time")
    # Two Predicts, an Embed and AutoMask all wait for the one encode.
    predicts = [asyncio.ensure_future(client.predict(pending.id)) for _ in range(2)]
    embed = asyncio.ensure_future(client.call())
    options = pb.AutoMaskOptions(points_per_side=2)
    search = client.stub.AutoMask(pb.AutoMaskRequest(embedding_id=pending.id, options=options))
    await client.in_flight(Predict=2, Embed=1, AutoMask=1)
    assert not any(call.done() for call in (*predicts, embed))
    client.go.set()

    predictions = await asyncio.gather(*predicts)
    assert all(prediction.results[0].masks for prediction in predictions)
    assert predictions[0].embedding.id == pending.id == (await embed).embedding.id
    assert [m async for m in search][-1].summary.embedding.id == pending.id
    # One is the warm-up.
    assert client.engine.counts["encode_begun"] == 2


async def test_prefetch_of_a_cached_image_is_like_embed(client: Client) -> None:
    client.go.set()
    first = (await client.call()).embedding
    again = await client.prefetch()

    assert (again.id, again.cached, again.stored) == (first.id, True, pb.STORED_LOCAL)
    assert again.HasField("expire_time")
    assert client.engine.counts["encode_begun"] == 2


async def test_end_of_a_waiting_call_does_not_cancel_the_prefetch(client: Client) -> None:
    pending = await client.prefetch()
    # The client's own timer may expire first, without details of the server.
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await client.predict(pending.id, timeout=0.2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    client.go.set()

    assert await client.is_found(pending.id)
    assert client.engine.counts["encode_cancelled"] == 0


async def test_invalid_header_is_rejected_at_once_and_invalid_pixels_later_return_not_found(
    client: Client,
) -> None:
    def bad(data: bytes) -> Any:
        return client.stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=data), prefetch=True))

    assert (await failure_of(bad(b"no"))).reason == "IMAGE_UNREADABLE"
    # Its header is valid; decoding fails.
    whole = sample_images.png(400, 600)
    client.go.set()
    pending = (await bad(whole[: len(whole) // 2])).embedding
    assert pending.stored == pb.STORED_PENDING
    assert not await client.is_found(pending.id)


async def test_prefetch_of_an_unknown_digest_returns_not_found(client: Client) -> None:
    image = pb.Image(encoded_sha256=bytes(32))

    failure = await failure_of(client.stub.Embed(pb.EmbedRequest(image=image, prefetch=True)))

    assert failure.reason == "EMBEDDING_NOT_FOUND"


async def test_invalid_durability_names_the_field(client: Client) -> None:
    both = await client.failure(prefetch=True, durability=pb.DURABILITY_DURABLE)
    unknown = await client.failure(durability=7)

    assert both.fields == unknown.fields == ["durability"]
    allowed = "DURABILITY_UNSPECIFIED, DURABILITY_DURABLE"
    assert unknown.metadata == unknown.metadata | {"value": "7", "limit": allowed}


async def test_number_of_prefetches_is_limited() -> None:
    async with paused_service(admission={"max_prefetches": 2}) as client:
        for seed in (0, 1, 0, 1):  # a repeated prefetch does not count
            await client.prefetch(seed)
        failure = await client.failure(2, prefetch=True)
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (failure.metadata["limit"], failure.retry_after_s) == ("2", 1.0)
        client.go.set()

        async def stored() -> bool:
            return (await client.prefetch(0)).stored == pb.STORED_LOCAL

        await until(stored)
        assert (await client.prefetch(2)).stored == pb.STORED_PENDING


async def test_bytes_of_prefetches_are_limited() -> None:
    size = len(sample_images.png())
    async with paused_service(admission={"max_prefetch_bytes": 2 * size}) as client:
        for seed in range(2):
            await client.prefetch(seed)

        failure = await client.failure(2, prefetch=True)

    assert failure.metadata["limit"] == str(2 * size)


class SequentialEngine(FakeEngine):
    """Encodes one image at a time, once ``go`` is set, and records the priorities."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.slot = FairSemaphore(1)
        self.served: list[Priority] = []

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if context.principal is not WARM_UP:
            async with self.slot.acquire(context):
                await self.go.wait()
                self.served.append(context.priority)
        await super().encode(model, image, into, context)


async def test_calls_run_before_prefetches() -> None:
    engine = SequentialEngine()
    async with serving(engine=engine) as (service, stub):
        client = Client(service, engine, stub)
        for seed in range(12):
            await client.prefetch(seed)
        # Four at a time: one of them is being encoded.
        await until(lambda: engine.slot.waiting == 4 - 1)
        embed = asyncio.ensure_future(client.call(99))
        await until(lambda: engine.slot.waiting == 4)
        engine.go.set()
        await embed
        await client.finished(12 + 1)

    bulk, interactive = Priority.BULK, Priority.INTERACTIVE
    assert engine.served == [bulk, interactive, *[bulk] * 11]


async def test_deleted_pending_embedding_is_not_stored(client: Client) -> None:
    pending = await client.prefetch()
    await wait_for_encodes(client.engine, 1)
    await client.delete(pending.id)
    assert not await client.is_found(pending.id)
    client.go.set()
    await client.finished(1)
    assert not await client.is_found(pending.id)
    # It can be embedded again.
    await client.call()
    assert await client.is_found(pending.id)


async def test_embed_after_a_delete_does_not_join_the_earlier_encode(
    client: Client,
) -> None:
    pending = await client.prefetch()
    await wait_for_encodes(client.engine, 1)
    await client.delete(pending.id)
    embed = asyncio.ensure_future(client.call())
    await wait_for_encodes(client.engine, 2)
    client.go.set()
    await embed

    assert await client.is_found(pending.id)


async def test_delete_cancels_queued_prefetches(client: Client) -> None:
    pending = [(await client.prefetch(seed)).id for seed in range(8)]
    await wait_for_encodes(client.engine, 4)
    assert client.engine.counts["encode_begun"] == 1 + 4  # four at a time
    for embedding_id in (pending[0], pending[7]):
        await client.delete(embedding_id)
    client.go.set()
    await client.finished(8)

    found = [await client.is_found(embedding_id) for embedding_id in pending]
    assert found == [False, *[True] * 6, False]


async def test_call_that_needs_a_queued_prefetch_encodes_at_once(
    client: Client,
) -> None:
    pending = [(await client.prefetch(seed)).id for seed in range(8)]
    await wait_for_encodes(client.engine, 4)
    by_id = asyncio.ensure_future(client.predict(pending[7]))
    await wait_for_encodes(client.engine, 5)
    by_image = asyncio.ensure_future(client.call(6))
    await wait_for_encodes(client.engine, 6)
    client.go.set()

    assert (await by_id).embedding.id == pending[7]
    assert (await by_image).embedding.id == pending[6]
    # An embedding that was encoded for a call is not encoded again for its prefetch.
    outcome = {"outcome": "ok"}
    sample = client.service.metrics.registry.get_sample_value
    await until(lambda: sample("samserve_prefetches_total", outcome) == 8)
    assert client.engine.counts["encode_begun"] == 1 + 8


async def test_embedding_deleted_during_its_embed_is_not_found_until_embedded_again(
    client: Client,
) -> None:
    early = asyncio.ensure_future(client.call())
    await wait_for_encodes(client.engine, 1)
    embedding_id = (await client.prefetch()).id
    await client.delete(embedding_id)
    client.go.set()
    await early
    assert not await client.is_found(embedding_id)
    await client.call()
    assert await client.is_found(embedding_id)


@pytest.mark.parametrize("waiting", [False, True])
async def test_shutdown_does_not_wait_for_prefetches(waiting: bool) -> None:
    async with AsyncExitStack() as server:
        client = await server.enter_async_context(paused_service())
        pending = await client.prefetch()
        await wait_for_encodes(client.engine, 1)
        call = asyncio.ensure_future(client.predict(pending.id)) if waiting else None
        await client.in_flight(Predict=int(waiting))
        # The server waits for calls within its grace period; the encode never ends by itself.
        async with asyncio.timeout(TIMEOUT_S):
            await server.aclose()
    assert client.engine.counts["encode_cancelled"] == 1
    if call is not None:
        await asyncio.gather(call, return_exceptions=True)
