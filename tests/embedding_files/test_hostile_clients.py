"""Slow, idle, cancelled and unauthorized calls of the two methods, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from samserve.calls import slow_clients
from samserve.calls.pipeline import Call
from samserve.engines.fake import FakeEngine
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from structlog.testing import capture_logs

from tests.conftest import UNLIMITED, serving, settings_with
from tests.embedding_files.files import SMALL, build, embed, enabled, get, put
from tests.metric_values import total
from tests.rpc.errors import failure_of
from tests.security.credentials import KeyFile, bearer
from tests.support.waiting import until

FILE = build()
# Room for one upload of each kind.
ONE = {"admission": {"max_concurrent_embedding_files": 1}}


def small() -> FakeEngine:
    return FakeEngine(model=SMALL)


async def half_sent(stub: SegmentationServiceStub, **options: Any) -> Any:
    """Begin an upload and send the first half of its file."""
    call = stub.PutEmbedding(**options)
    await call.write(pb.PutEmbeddingRequest(chunk=FILE[: len(FILE) // 2]))
    return call


async def test_disabled_methods_are_reported_as_such() -> None:
    async with serving(settings_with(), engine=small()) as (_, stub):
        failures = [
            await failure_of(stub.GetEmbedding(pb.GetEmbeddingRequest(embedding_id="a" * 64))),
            await failure_of(stub.GetEmbedding(pb.GetEmbeddingRequest())),
            await failure_of(put(stub, FILE)),
        ]

    assert {(each.code, each.reason) for each in failures} == {
        (grpc.StatusCode.UNIMPLEMENTED, "METHOD_DISABLED")
    }
    methods = [each.metadata["method"] for each in failures]
    assert methods == ["GetEmbedding", "GetEmbedding", "PutEmbedding"]


async def test_each_method_is_enabled_by_its_own_setting() -> None:
    for name, other in (("get_enabled", "PutEmbedding"), ("put_enabled", "GetEmbedding")):
        settings = settings_with(embedding_files={name: True})
        async with serving(settings, engine=small()) as (_, stub):
            got = stub.GetEmbedding(pb.GetEmbeddingRequest(embedding_id="a" * 64))
            failures = [await failure_of(got), await failure_of(put(stub, b"no file"))]

        disabled = [each for each in failures if each.reason == "METHOD_DISABLED"]
        assert [each.metadata["method"] for each in disabled] == [other]


async def test_idle_upload_ends_and_frees_its_slot() -> None:
    server = {"receive_timeout_s": 0.5}
    async with serving(enabled(server=server, **ONE), engine=small()) as (_, stub):
        idle = await half_sent(stub)
        failure = await failure_of(idle)
        stored = (await put(stub, FILE)).embedding

    assert failure.reason == "DEADLINE_EXCEEDED"
    assert failure.metadata["stage"] == "receive"
    assert stored.id.startswith("put_")


async def test_client_that_cancels_or_leaves_frees_its_slot() -> None:
    async with serving(enabled(**ONE), engine=small()) as (running, stub):
        with capture_logs() as lines:
            for end in ("cancel", "close"):
                async with grpc.aio.insecure_channel(running.address, options=UNLIMITED) as channel:
                    call = await half_sent(SegmentationServiceStub(channel))
                    await until(lambda: in_flight(running) == 1)
                    if end == "cancel":
                        call.cancel()
                await until(lambda: in_flight(running) == 0)
        stored = (await put(stub, FILE)).embedding

    calls = [line for line in lines if line.get("method") == "PutEmbedding"]
    assert [line["code"] for line in calls] == ["CANCELLED", "CANCELLED"]
    assert stored.id.startswith("put_")


def in_flight(running: Any) -> float:
    name = "samserve_inflight_requests"
    return total(running.metrics.registry, name, grpc_method="PutEmbedding")


@pytest.fixture
def received(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The bytes of each message of an upload that a server has received."""
    sizes: list[int] = []
    receive_next = Call.receive_next

    async def record(call: Call) -> bytes | None:
        data = await receive_next(call)
        sizes.append(len(data or b""))
        return data

    monkeypatch.setattr(Call, "receive_next", record)
    return sizes


async def test_uploads_over_the_limits_are_rejected_until_others_end(received: list[int]) -> None:
    limits: tuple[tuple[dict[str, Any], str], ...] = (
        (ONE, "calls"),
        ({"admission": {"max_in_flight_request_bytes": len(FILE)}}, "request_bytes"),
        ({"embedding_files": {"max_upload_bytes": SMALL.embedding_bytes}}, "upload_bytes"),
    )
    for sections, resource in limits:
        async with serving(enabled(**sections), engine=small()) as (_, stub):
            received.clear()
            first = await half_sent(stub)
            await until(lambda: bool(received))
            rejected = await failure_of(put(stub, FILE))
            await first.write(pb.PutEmbeddingRequest(chunk=FILE[len(FILE) // 2 :]))
            await first.done_writing()
            stored = (await first).embedding
            again = (await put(stub, FILE)).embedding

        assert (rejected.reason, rejected.metadata["resource"]) == ("OVERLOADED", resource)
        assert rejected.retry_after_s
        assert again.id == stored.id, resource


async def test_slow_message_of_an_upload_needs_a_slot_for_slow_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    settings = enabled(admission={"max_slow_requests": 1})
    async with serving(settings, engine=small()) as (_, stub):
        calls = [await half_sent(stub) for _ in range(3)]
        done, pending = await asyncio.wait(
            [asyncio.create_task(failure_of(call)) for call in calls],
            return_when=asyncio.FIRST_COMPLETED,
        )
        await until(lambda: sum(call.done() for call in calls) == 2)
        for task in pending:
            task.cancel()
        failure = done.pop().result()

    assert (failure.reason, failure.metadata["resource"]) == ("OVERLOADED", "slow_requests")


async def test_deadline_of_the_client_ends_an_upload() -> None:
    async with serving(enabled(**ONE), engine=small()) as (running, stub):
        call = await half_sent(stub, timeout=0.2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        await until(lambda: in_flight(running) == 0)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_reader_that_leaves_releases_its_lease() -> None:
    settings = enabled(cache={"local": {"capacity_bytes": 2 << 20}}, **ONE)
    # An embedding of 2 MiB: its chunks do not fit into the buffers of a connection.
    async with serving(settings) as (running, stub):
        embedding_id = await embed(stub)
        stream = stub.GetEmbedding(pb.GetEmbeddingRequest(embedding_id=embedding_id))
        await stream.read()
        stream.cancel()
        # The lease would prevent the eviction, and the call another one.
        await until(lambda: _embeds(stub))

        assert running.cache.stats().evictions == 1


async def _embeds(stub: SegmentationServiceStub) -> bool:
    try:
        await get(stub, await embed(stub, seed=1))
    except grpc.aio.AioRpcError:
        return False
    return True


async def test_calls_are_counted_and_logged() -> None:
    async with serving(enabled(), engine=small()) as (running, stub):
        with capture_logs() as lines:
            stored = (await put(stub, [FILE[:100], FILE[100:]])).embedding
            chunks = await get(stub, stored.id)
        labels = {"grpc_method": "PutEmbedding", "grpc_type": "client_stream", "grpc_code": "OK"}
        handled = total(running.metrics.registry, "grpc_server_handled_total", **labels)
        received = total(
            running.metrics.registry,
            "samserve_message_bytes_total",
            grpc_method="PutEmbedding",
            direction="received",
        )

    first, second = [line for line in lines if line["event"] == "rpc"]
    messages = [pb.PutEmbeddingRequest(chunk=each) for each in (FILE[:100], FILE[100:])]
    expected = sum(message.ByteSize() for message in messages)
    assert (first["method"], first["model"], first["cache"]) == ("PutEmbedding", "fake", "miss")
    assert first["received_bytes"] == received == expected
    assert (second["method"], second["cache"]) == ("GetEmbedding", "local")
    assert second["sent_bytes"] > len(b"".join(chunks))
    assert handled == 1


@pytest.fixture
async def tenants(tmp_path: Path) -> AsyncIterator[tuple[SegmentationServiceStub, Any, Any]]:
    """A server with two tenants, and the credentials of a caller of each."""
    keys = KeyFile(tmp_path / "keys.toml")
    roles = ("embed", "predict", "embeddings_read", "embeddings_write")
    one, two = (bearer(keys.add(tenant, *roles)) for tenant in ("one", "two"))
    settings = enabled(auth={"api_keys_file": keys.path})
    async with serving(settings, engine=small()) as (_, stub):
        yield stub, one, two


async def test_embedding_belongs_to_the_tenant_that_has_put_it(
    tenants: tuple[SegmentationServiceStub, Any, Any],
) -> None:
    stub, one, two = tenants
    embedding_id = await embed(stub, metadata=one)
    stored = (await put(stub, FILE, metadata=one)).embedding

    for known in (embedding_id, stored.id):
        request = pb.GetEmbeddingRequest(embedding_id=known)
        failure = await failure_of(stub.GetEmbedding(request, metadata=two))
        assert failure.reason == "EMBEDDING_NOT_FOUND"
    # The same file is another embedding of the other tenant.
    other = (await put(stub, FILE, metadata=two)).embedding
    assert (other.id, other.cached) == (stored.id, False)
