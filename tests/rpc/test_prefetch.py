"""Embed without waiting: what is pending, who joins it, and what ends it."""

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

from tests import pictures
from tests.conftest import serving, settings_with
from tests.rpc.errors import Failure, failure_of, read
from tests.support.engines import encodes_begun
from tests.support.waiting import BOUND_S, until


class Client:
    """Makes the calls of these tests; the encoder waits until ``go`` is set."""

    def __init__(self, service: Running, engine: FakeEngine, stub: SegmentationServiceStub) -> None:
        self.service, self.engine, self.stub, self.go = service, engine, stub, asyncio.Event()

    def call(self, seed: int = 0, **fields: Any) -> Any:
        return self.stub.Embed(pb.EmbedRequest(image=pictures.image(seed=seed), **fields))

    async def prefetch(self, seed: int = 0) -> pb.Embedding:
        return (await self.call(seed, prefetch=True)).embedding

    def click(self, embedding_id: str, **options: Any) -> Any:
        request = pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()])
        return self.stub.Predict(request, **options)

    async def is_found(self, embedding_id: str) -> bool:
        try:
            return bool((await self.click(embedding_id)).results)
        except grpc.aio.AioRpcError as error:
            if read(error).reason != "EMBEDDING_NOT_FOUND":
                raise
            return False

    async def delete(self, embedding_id: str) -> None:
        await self.stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))

    async def refused(self, seed: int = 0, **fields: Any) -> Failure:
        return await failure_of(self.call(seed, **fields))

    async def finished(self, count: int) -> None:
        """Wait until so many encodes have ended well besides the warm-up's."""
        await until(lambda: self.engine.counts["encode_finished"] >= 1 + count)

    async def in_flight(self, **calls: int) -> None:
        """Wait until so many calls of each method have arrived."""
        sample = self.service.metrics.registry.get_sample_value
        for method, count in calls.items():
            labels = {"grpc_method": method}
            await until(lambda c=count, at=labels: sample("samserve_inflight_requests", at) == c)


@asynccontextmanager
async def held_service(**sections: dict[str, Any]) -> AsyncIterator[Client]:
    sections.setdefault("server", {})["grace_s"] = 0.2
    engine = FakeEngine()
    async with serving(settings_with(**sections), engine=engine) as (service, stub):
        client = Client(service, engine, stub)
        engine.hold(client.go)
        yield client


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with held_service() as client:
        yield client


async def test_a_prefetch_is_answered_at_once_and_a_click_waits_for_it(client: Client) -> None:
    pending = await client.prefetch()
    assert pending.stored == pb.STORED_PENDING
    assert (pending.image_size.height, pending.image_size.width) == (48, 64)
    assert (pending.model, pending.cached) == ("fake", False)
    assert not pending.HasField("expire_time")
    # Two clicks, an Embed and AutoMask all wait for the one encode.
    clicks = [asyncio.ensure_future(client.click(pending.id)) for _ in range(2)]
    embed = asyncio.ensure_future(client.call())
    options = pb.AutoMaskOptions(points_per_side=2)
    search = client.stub.AutoMask(pb.AutoMaskRequest(embedding_id=pending.id, options=options))
    await client.in_flight(Predict=2, Embed=1, AutoMask=1)
    assert not any(call.done() for call in (*clicks, embed))
    client.go.set()

    answers = await asyncio.gather(*clicks)
    assert all(answer.results[0].masks for answer in answers)
    assert answers[0].embedding.id == pending.id == (await embed).embedding.id
    assert [m async for m in search][-1].summary.embedding.id == pending.id
    # One for the warm-up.
    assert client.engine.counts["encode_begun"] == 2


async def test_a_prefetch_of_what_is_there_is_like_an_embed(client: Client) -> None:
    client.go.set()
    first = (await client.call()).embedding
    again = await client.prefetch()

    assert (again.id, again.cached, again.stored) == (first.id, True, pb.STORED_LOCAL)
    assert again.HasField("expire_time")
    assert client.engine.counts["encode_begun"] == 2


async def test_the_end_of_the_call_does_not_end_the_work(client: Client) -> None:
    pending = await client.prefetch()
    # Sometimes the client's own clock is the first to say so, without our details.
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await client.click(pending.id, timeout=0.2)
    assert late.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    client.go.set()

    assert await client.is_found(pending.id)
    assert client.engine.counts["encode_cancelled"] == 0


async def test_bad_heads_are_refused_at_once_and_bad_pictures_not_found_later(
    client: Client,
) -> None:
    def bad(data: bytes) -> Any:
        return client.stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=data), prefetch=True))

    assert (await failure_of(bad(b"no"))).reason == "IMAGE_UNREADABLE"
    # Its header is valid; what is wrong comes out when it is decoded.
    whole = pictures.png(400, 600)
    client.go.set()
    pending = (await bad(whole[: len(whole) // 2])).embedding
    assert pending.stored == pb.STORED_PENDING
    assert not await client.is_found(pending.id)


async def test_a_digest_that_is_not_known_is_not_found(client: Client) -> None:
    image = pb.Image(encoded_sha256=bytes(32))

    failure = await failure_of(client.stub.Embed(pb.EmbedRequest(image=image, prefetch=True)))

    assert failure.reason == "EMBEDDING_NOT_FOUND"


async def test_what_cannot_be_meant_names_the_field(client: Client) -> None:
    both = await client.refused(prefetch=True, durability=pb.DURABILITY_DURABLE)
    unknown = await client.refused(durability=7)

    assert both.fields == unknown.fields == ["durability"]
    allowed = "DURABILITY_UNSPECIFIED, DURABILITY_DURABLE"
    assert unknown.metadata == unknown.metadata | {"value": "7", "limit": allowed}


async def test_pending_pictures_are_bounded_in_number() -> None:
    async with held_service(admission={"prefetch": 2}) as client:
        for seed in (0, 1, 0, 1):  # again costs nothing
            await client.prefetch(seed)
        failure = await client.refused(2, prefetch=True)
        assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (failure.metadata["limit"], failure.retry_after_s) == ("2", 1.0)
        client.go.set()

        async def stored() -> bool:
            return (await client.prefetch(0)).stored == pb.STORED_LOCAL

        await until(stored)
        assert (await client.prefetch(2)).stored == pb.STORED_PENDING


async def test_pending_pictures_are_bounded_in_bytes() -> None:
    size = len(pictures.png())
    async with held_service(admission={"prefetch_bytes": 2 * size}) as client:
        for seed in range(2):
            await client.prefetch(seed)

        failure = await client.refused(2, prefetch=True)

    assert failure.metadata["limit"] == str(2 * size)


class OneAtATime(FakeEngine):
    """Serves one run after the other, once it may ``go``, and notes their priorities."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.turns = FairSemaphore(1)
        self.served: list[Priority] = []

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if context.principal is not WARM_UP:
            async with self.turns.hold(context):
                await self.go.wait()
                self.served.append(context.priority)
        await super().encode(model, image, into, context)


async def test_what_a_caller_waits_for_goes_before_what_is_fetched_ahead() -> None:
    engine = OneAtATime()
    async with serving(engine=engine) as (service, stub):
        client = Client(service, engine, stub)
        for seed in range(12):
            await client.prefetch(seed)
        # Some at a time: one of them is being served.
        await until(lambda: engine.turns.waiting == 4 - 1)
        embed = asyncio.ensure_future(client.call(99))
        await until(lambda: engine.turns.waiting == 4)
        engine.go.set()
        await embed
        await client.finished(12 + 1)

    bulk, interactive = Priority.BULK, Priority.INTERACTIVE
    assert engine.served == [bulk, interactive, *[bulk] * 11]


async def test_a_pending_embedding_that_is_deleted_does_not_come_back(client: Client) -> None:
    pending = await client.prefetch()
    await encodes_begun(client.engine, 1)
    await client.delete(pending.id)
    assert not await client.is_found(pending.id)
    client.go.set()
    await client.finished(1)
    assert not await client.is_found(pending.id)
    # It can be had again.
    await client.call()
    assert await client.is_found(pending.id)


async def test_an_embed_after_a_delete_does_not_join_what_was_begun_before_it(
    client: Client,
) -> None:
    pending = await client.prefetch()
    await encodes_begun(client.engine, 1)
    await client.delete(pending.id)
    embed = asyncio.ensure_future(client.call())
    await encodes_begun(client.engine, 2)
    client.go.set()
    await embed

    assert await client.is_found(pending.id)


async def test_a_delete_reaches_what_still_waits_for_its_turn(client: Client) -> None:
    pending = [(await client.prefetch(seed)).id for seed in range(8)]
    await encodes_begun(client.engine, 4)
    assert client.engine.counts["encode_begun"] == 1 + 4  # some at a time
    for embedding_id in (pending[0], pending[7]):
        await client.delete(embedding_id)
    client.go.set()
    await client.finished(8)

    found = [await client.is_found(embedding_id) for embedding_id in pending]
    assert found == [False, *[True] * 6, False]


async def test_who_needs_what_still_waits_for_its_turn_does_not_wait_for_that(
    client: Client,
) -> None:
    pending = [(await client.prefetch(seed)).id for seed in range(8)]
    await encodes_begun(client.engine, 4)
    by_id = asyncio.ensure_future(client.click(pending[7]))
    await encodes_begun(client.engine, 5)
    by_picture = asyncio.ensure_future(client.call(6))
    await encodes_begun(client.engine, 6)
    client.go.set()

    assert (await by_id).embedding.id == pending[7]
    assert (await by_picture).embedding.id == pending[6]
    # What was made for a call is not made again when its turn comes.
    outcome = {"outcome": "ok"}
    sample = client.service.metrics.registry.get_sample_value
    await until(lambda: sample("samserve_prefetches_total", outcome) == 8)
    assert client.engine.counts["encode_begun"] == 1 + 8


async def test_an_embed_during_which_it_is_deleted_is_not_found_and_one_after_it_is(
    client: Client,
) -> None:
    early = asyncio.ensure_future(client.call())
    await encodes_begun(client.engine, 1)
    embedding_id = (await client.prefetch()).id
    await client.delete(embedding_id)
    client.go.set()
    await early
    assert not await client.is_found(embedding_id)
    await client.call()
    assert await client.is_found(embedding_id)


@pytest.mark.parametrize("waiting", [False, True])
async def test_the_end_of_the_server_does_not_wait_for_what_is_pending(waiting: bool) -> None:
    async with AsyncExitStack() as server:
        client = await server.enter_async_context(held_service())
        pending = await client.prefetch()
        await encodes_begun(client.engine, 1)
        call = asyncio.ensure_future(client.click(pending.id)) if waiting else None
        await client.in_flight(Predict=int(waiting))
        # It waits for calls as long as its grace, and the work never ends by itself.
        async with asyncio.timeout(BOUND_S):
            await server.aclose()
    assert client.engine.counts["encode_cancelled"] == 1
    if call is not None:
        await asyncio.gather(call, return_exceptions=True)
