"""Embed without waiting: what is pending, who joins it, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from samserve.context import Priority, RequestContext
from samserve.engines.fake import FakeEngine
from samserve.security.principal import WARM_UP
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import serving, settings_with
from tests.rpc.errors import failure_of
from tests.support.engines import encodes_begun
from tests.support.waiting import BOUND_S, until

Code = grpc.StatusCode


@asynccontextmanager
async def held_service(
    **sections: dict[str, Any],
) -> AsyncIterator[tuple[FakeEngine, asyncio.Event, SegmentationServiceStub]]:
    """A service whose encoder waits until the event is set."""
    engine, go = FakeEngine(), asyncio.Event()
    sections.setdefault("server", {})["grace_s"] = 0.2
    async with serving(settings_with(**sections), engine=engine) as (_, stub):
        engine.hold(go)
        yield engine, go, stub


def prefetch(seed: int = 0, **fields: Any) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=pictures.image(seed=seed), prefetch=True, **fields)


def click(embedding_id: str) -> pb.PredictRequest:
    return pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click()])


async def finished(engine: FakeEngine, count: int) -> None:
    """Wait until so many encodes have ended well besides the warm-up's."""
    await until(lambda: engine.counts["encode_finished"] >= 1 + count)


async def test_a_prefetch_is_answered_at_once_and_a_click_waits_for_it() -> None:
    async with held_service() as (engine, go, stub):
        pending = (await stub.Embed(prefetch())).embedding
        assert pending.stored == pb.STORED_PENDING
        assert (pending.image_size.height, pending.image_size.width) == (48, 64)
        assert (pending.model, pending.cached) == ("fake", False)
        assert not pending.HasField("expire_time")
        # Two clicks, an Embed and AutoMask all wait for the one encode.
        clicks = [asyncio.ensure_future(stub.Predict(click(pending.id))) for _ in range(2)]
        embed = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(image=pictures.image())))
        options = pb.AutoMaskOptions(points_per_side=2)
        search = stub.AutoMask(pb.AutoMaskRequest(embedding_id=pending.id, options=options))
        # Time to arrive.
        await asyncio.sleep(0.05)
        assert not any(call.done() for call in (*clicks, embed))
        go.set()

        answers = await asyncio.gather(*clicks)
        assert all(answer.results[0].masks for answer in answers)
        assert answers[0].embedding.id == pending.id == (await embed).embedding.id
        assert [m async for m in search][-1].summary.embedding.id == pending.id
        # One for the warm-up.
        assert engine.counts["encode_begun"] == 2


async def test_a_prefetch_of_what_is_there_is_like_an_embed() -> None:
    async with held_service() as (engine, go, stub):
        go.set()
        first = (await stub.Embed(pb.EmbedRequest(image=pictures.image()))).embedding
        again = (await stub.Embed(prefetch())).embedding

        assert (again.id, again.cached, again.stored) == (first.id, True, pb.STORED_LOCAL)
        assert again.HasField("expire_time")
        assert engine.counts["encode_begun"] == 2


async def test_the_end_of_the_call_does_not_end_the_work() -> None:
    async with held_service() as (engine, go, stub):
        pending = (await stub.Embed(prefetch(), timeout=5)).embedding
        # Sometimes the client's own clock is the first to say so, without our details.
        with pytest.raises(grpc.aio.AioRpcError) as late:
            await stub.Predict(click(pending.id), timeout=0.2)
        assert late.value.code() is Code.DEADLINE_EXCEEDED
        go.set()

        assert (await stub.Predict(click(pending.id))).results
        assert engine.counts["encode_cancelled"] == 0


async def test_bad_heads_are_refused_at_once_and_bad_pictures_not_found_later() -> None:
    async with held_service() as (_, go, stub):
        failure = await failure_of(
            stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=b"no"), prefetch=True))
        )
        assert failure.reason == "IMAGE_UNREADABLE"
        # Its head is in order; what is wrong comes out when it is decoded.
        whole = pictures.png(400, 600)
        image = pb.Image(encoded=whole[: len(whole) // 2])
        go.set()
        pending = (await stub.Embed(pb.EmbedRequest(image=image, prefetch=True))).embedding
        assert pending.stored == pb.STORED_PENDING
        failure = await failure_of(stub.Predict(click(pending.id)))
        assert failure.reason == "EMBEDDING_NOT_FOUND"


async def test_a_digest_that_is_not_known_is_not_found() -> None:
    async with held_service() as (_, _go, stub):
        image = pb.Image(encoded_sha256=bytes(32))

        failure = await failure_of(stub.Embed(pb.EmbedRequest(image=image, prefetch=True)))

        assert failure.reason == "EMBEDDING_NOT_FOUND"


async def test_what_cannot_be_meant_names_the_field() -> None:
    async with held_service() as (_, _go, stub):
        both = await failure_of(stub.Embed(prefetch(durability=pb.DURABILITY_DURABLE)))
        unknown = await failure_of(
            stub.Embed(pb.EmbedRequest(image=pictures.image(), durability=7))  # type: ignore[arg-type]
        )

    assert both.fields == unknown.fields == ["durability"]
    allowed = "DURABILITY_UNSPECIFIED, DURABILITY_DURABLE"
    assert unknown.metadata == unknown.metadata | {"value": "7", "limit": allowed}


async def test_pending_pictures_are_bounded_in_number() -> None:
    async with held_service(admission={"prefetch": 2}) as (_, go, stub):
        for seed in (0, 1, 0, 1):  # again costs nothing
            await stub.Embed(prefetch(seed))
        failure = await failure_of(stub.Embed(prefetch(2)))
        assert failure.code is Code.RESOURCE_EXHAUSTED
        assert (failure.metadata["limit"], failure.retry_after_s) == ("2", 1.0)
        go.set()

        async def stored() -> bool:
            return (await stub.Embed(prefetch(0))).embedding.stored == pb.STORED_LOCAL

        await until(stored)
        assert (await stub.Embed(prefetch(2))).embedding.stored == pb.STORED_PENDING


async def test_pending_pictures_are_bounded_in_bytes() -> None:
    size = len(pictures.png())
    async with held_service(admission={"prefetch_bytes": 2 * size}) as (_, _go, stub):
        for seed in range(2):
            await stub.Embed(prefetch(seed))

        failure = await failure_of(stub.Embed(prefetch(2)))

        assert failure.metadata["limit"] == str(2 * size)


class OneAtATime(FakeEngine):
    """Serves one run after the other, once it may ``go``, and notes their priorities."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.served: list[Priority] = []

    @property
    def waiting(self) -> int:
        return self._gate.waiting

    async def _serve(self, context: RequestContext) -> None:
        if context.principal is WARM_UP:
            return
        async with self._gate.hold(context):
            await self.go.wait()
            self.served.append(context.priority)


async def test_what_a_caller_waits_for_goes_before_what_is_fetched_ahead() -> None:
    engine = OneAtATime()
    async with serving(engine=engine) as (_, stub):
        for seed in range(12):
            await stub.Embed(prefetch(seed))
        # Some at a time: one of them is being served.
        await until(lambda: engine.waiting == 4 - 1)
        embed = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(image=pictures.image(seed=99))))
        await until(lambda: engine.waiting == 4)
        engine.go.set()
        await embed
        await finished(engine, 12 + 1)

    bulk, interactive = Priority.BULK, Priority.INTERACTIVE
    assert engine.served == [bulk, interactive, *[bulk] * 11]


async def test_a_pending_embedding_that_is_deleted_does_not_come_back() -> None:
    async with held_service() as (engine, go, stub):
        pending = (await stub.Embed(prefetch())).embedding
        await encodes_begun(engine, 1)
        await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=pending.id))
        failure = await failure_of(stub.Predict(click(pending.id)))
        assert failure.reason == "EMBEDDING_NOT_FOUND"
        go.set()
        await finished(engine, 1)
        failure = await failure_of(stub.Predict(click(pending.id)))
        assert failure.reason == "EMBEDDING_NOT_FOUND"
        # It can be had again.
        await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        assert (await stub.Predict(click(pending.id))).results


async def test_an_embed_after_a_delete_does_not_join_what_was_begun_before_it() -> None:
    async with held_service() as (engine, go, stub):
        pending = (await stub.Embed(prefetch())).embedding
        await encodes_begun(engine, 1)
        await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=pending.id))
        embed = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(image=pictures.image())))
        await encodes_begun(engine, 2)
        go.set()
        await embed

        assert (await stub.Predict(click(pending.id))).results


async def test_a_delete_reaches_what_still_waits_for_its_turn() -> None:
    async with held_service() as (engine, go, stub):
        pending = [(await stub.Embed(prefetch(seed))).embedding.id for seed in range(8)]
        await encodes_begun(engine, 4)
        assert engine.counts["encode_begun"] == 1 + 4  # some at a time
        for embedding_id in (pending[0], pending[7]):
            await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))
        go.set()
        await finished(engine, 8)
        for number, embedding_id in enumerate(pending):
            call = stub.Predict(click(embedding_id))
            if number in (0, 7):
                assert (await failure_of(call)).reason == "EMBEDDING_NOT_FOUND"
            else:
                assert (await call).results


async def test_who_needs_what_still_waits_for_its_turn_does_not_wait_for_that() -> None:
    async with held_service() as (engine, go, stub):
        pending = [(await stub.Embed(prefetch(seed))).embedding.id for seed in range(8)]
        await encodes_begun(engine, 4)
        by_id = asyncio.ensure_future(stub.Predict(click(pending[7])))
        await encodes_begun(engine, 5)
        by_picture = asyncio.ensure_future(
            stub.Embed(pb.EmbedRequest(image=pictures.image(seed=6)))
        )
        await encodes_begun(engine, 6)
        go.set()

        assert (await by_id).embedding.id == pending[7]
        assert (await by_picture).embedding.id == pending[6]
        await finished(engine, 8)
        # What was made for somebody is not made again when its turn comes.
        await asyncio.sleep(0.05)
        assert engine.counts["encode_begun"] == 1 + 8


async def test_an_embed_during_which_it_is_deleted_is_not_found_and_one_after_it_is() -> None:
    async with held_service() as (engine, go, stub):
        request = pb.EmbedRequest(image=pictures.image())
        early = asyncio.ensure_future(stub.Embed(request))
        await encodes_begun(engine, 1)
        embedding_id = (await stub.Embed(prefetch())).embedding.id
        await stub.DeleteEmbedding(pb.DeleteEmbeddingRequest(embedding_id=embedding_id))
        go.set()
        await early
        failure = await failure_of(stub.Predict(click(embedding_id)))
        assert failure.reason == "EMBEDDING_NOT_FOUND"
        await stub.Embed(request)
        assert (await stub.Predict(click(embedding_id))).results


@pytest.mark.parametrize("waiting", [False, True])
async def test_the_end_of_the_server_does_not_wait_for_what_is_pending(waiting: bool) -> None:
    async with AsyncExitStack() as server:
        engine, _go, stub = await server.enter_async_context(held_service())
        pending = (await stub.Embed(prefetch())).embedding
        await encodes_begun(engine, 1)
        call = asyncio.ensure_future(stub.Predict(click(pending.id))) if waiting else None
        # Time to arrive.
        await asyncio.sleep(0.05)
        # It waits for calls as long as its grace, and the work never ends by itself.
        async with asyncio.timeout(BOUND_S):
            await server.aclose()
    assert engine.counts["encode_cancelled"] == 1
    if call is not None:
        await asyncio.gather(call, return_exceptions=True)
