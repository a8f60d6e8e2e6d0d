"""What is decided before a request is read, and limits of connections."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from samserve.app import Running, running
from samserve.calls import slow_clients
from samserve.rpc import public_services
from samserve.rpc.public_services import MAX_CALLS, PublicServiceLimits
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.conftest import UNLIMITED, serving, settings_with
from tests.samples import total
from tests.security import http2
from tests.security.credentials import KeyFile, bearer
from tests.support.engines import UnavailableEngine
from tests.support.waiting import BOUND_S, until

SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]
METHODS = [method.name for method in SERVICE.methods]


@asynccontextmanager
async def health_of(service: Running, *options: Any) -> AsyncIterator[health_pb2_grpc.HealthStub]:
    channel = grpc.aio.insecure_channel(service.address, options=[*UNLIMITED, *options])
    async with channel:
        yield health_pb2_grpc.HealthStub(channel)


def in_flight(service: Running, method: str) -> float:
    return total(service.metrics.registry, "samserve_inflight_requests", grpc_method=method)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """No request is given up because it has not come at once."""
    monkeypatch.setattr(slow_clients, "PROMPT_S", 600.0)


@pytest.mark.usefixtures("patient")
async def test_a_refusal_does_not_wait_for_the_request(key_file: KeyFile) -> None:
    """The client opens the call and sends nothing of its request: the answer comes all the same."""
    statuses = {}
    async with running(settings_with(auth={"keys_file": key_file.path})) as service:
        for method in METHODS:
            reader, writer = await opened(service.address, method, {})
            async with asyncio.timeout(BOUND_S):
                statuses[method] = await http2.status_of_stream(reader)
            writer.close()

    assert statuses == dict.fromkeys(METHODS, "UNAUTHENTICATED")


async def opened(
    address: str, method: str, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a call, of whose request nothing is sent."""
    call = http2.call_headers(f"/{SERVICE.full_name}/{method}", "localhost", **headers)
    return await http2.connected(address, http2.hello() + call)


@pytest.mark.usefixtures("patient")
async def test_who_may_call_is_waited_for(key_file: KeyFile) -> None:
    """The control of the test above: without a refusal nothing comes before the request."""
    key = key_file.add("acme", "embed")
    async with serving(settings_with(auth={"keys_file": key_file.path})) as (service, stub):
        headers = {"authorization": f"Bearer {key}"}
        reader, writer = await opened(service.address, "ListModels", headers)
        status = asyncio.create_task(http2.status_of_stream(reader))
        await until(lambda: in_flight(service, "ListModels") == 1)
        # Time enough for another call.
        await stub.Embed(pb.EmbedRequest(image=pictures.image()), metadata=bearer(key))
        assert not status.done()
        end_stream, empty = 1, bytes(5)
        writer.write(http2.frame(http2.DATA, end_stream, 1, empty))
        async with asyncio.timeout(BOUND_S):
            assert await status == "OK"
        writer.close()


async def test_who_pings_too_often_is_sent_away() -> None:
    async with running(settings_with()) as service:
        reader, writer = await http2.connected(service.address)
        writer.write(http2.frame(http2.PING, 0, 0, bytes(8)) * 20)

        farewell = await asyncio.wait_for(http2.until_goaway(reader), BOUND_S)
        writer.close()

    # ENHANCE_YOUR_CALM, RFC 9113 section 7.
    assert int.from_bytes(farewell[4:8], "big") == 0xB
    assert farewell[8:] == b"too_many_pings"


async def test_who_pings_no_more_often_than_allowed_may_stay() -> None:
    interval_s = 0.01
    async with running(settings_with(server={"ping_interval_s": interval_s})) as service:
        reader, writer = await http2.connected(service.address)
        # gRPC's own interval is five minutes, and the third ping below it ends the connection.
        for number in range(10):
            writer.write(http2.frame(http2.PING, 0, 0, number.to_bytes(8, "big")))
            async with asyncio.timeout(BOUND_S):
                assert await http2.ping_answer(reader) == number
            await asyncio.sleep(2 * interval_s)
        writer.close()


async def test_connections_end_for_age_and_lose_no_call() -> None:
    server = {"connection_age_s": 0.2, "grace_s": 60}
    async with serving(settings_with(server=server)) as (service, stub):
        await stub.ListModels(pb.ListModelsRequest())
        # Two ages, one after the other: the channel's own connection has ended before the second.
        farewells = []
        for _ in range(2):
            reader, writer = await http2.connected(service.address)
            ending = asyncio.create_task(http2.until_goaway(reader))
            async with asyncio.timeout(BOUND_S):
                while not ending.done():
                    await stub.ListModels(pb.ListModelsRequest())
            farewells.append(ending.result())
            writer.close()

    assert [int.from_bytes(each[4:8], "big") for each in farewells] == [0, 0]  # NO_ERROR


async def test_streams_without_credentials_are_so_many(key_file: KeyFile) -> None:
    key = bearer(key_file.add("acme", "embed"))
    request = health_pb2.HealthCheckRequest()
    settings = settings_with(auth={"keys_file": key_file.path}, server={"streams": 1000})
    async with (
        serving(settings) as (service, stub),
        health_of(service) as health,
        health_of(service, ("grpc.use_local_subchannel_pool", 1)) as another,
    ):
        # One connection gets three quarters of all.
        watches = [health.Watch(request) for _ in range(MAX_CALLS * 3 // 4)]
        await asyncio.gather(*(watch.read() for watch in watches))
        one_more = health.Watch(request)
        assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Nobody else notices: not who checks, nor who watches elsewhere, nor who has credentials.
        await health.Check(request)
        elsewhere = another.Watch(request)
        await elsewhere.read()
        elsewhere.cancel()
        await stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=pictures.png())), metadata=key)
        watches.pop().cancel()
        await until(lambda: takes_watch(health))
        for watch in watches:
            watch.cancel()


async def test_health_is_answered_while_another_holds_its_requests_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Four at a time, each for so long: a hundred take 25 times as long.
    monkeypatch.setattr(public_services, "PROMPT_S", 0.2)
    monkeypatch.setattr(public_services, "_READ_TIMEOUT_S", 600.0)
    async with running(settings_with()) as service, health_of(service) as health:
        reader, writer = await http2.connected(service.address)
        for stream in range(1, 200, 2):
            call = bytearray(http2.call_headers("/grpc.health.v1.Health/Check", "localhost"))
            call[5:9] = stream.to_bytes(4, "big")
            writer.write(bytes(call))
        await writer.drain()
        ended: set[int] = set()
        reading = asyncio.create_task(note_ends(reader, ended))
        await until(lambda: bool(ended))
        await health.Check(health_pb2.HealthCheckRequest(), timeout=BOUND_S)
        # Most of them still wait for their turn.
        assert len(ended) < 90
        reading.cancel()
        writer.close()


async def note_ends(reader: asyncio.StreamReader, ended: set[int]) -> None:
    """Note the streams on which something has been answered."""
    while (got := await http2.read_frame(reader)) is not None:
        if got.kind == http2.HEADERS:
            ended.add(got.stream)


@pytest.mark.parametrize("who", ["a watcher", "a silent connection", "a connection without calls"])
async def test_a_client_that_only_listens_does_not_hold_up_the_end(who: str) -> None:
    # Longer than the end may take.
    patience = {"grace_s": 250, "handshake_s": 250, "idle_s": 250}
    async with AsyncExitStack() as clients, AsyncExitStack() as server:
        service = await server.enter_async_context(running(settings_with(server=patience)))
        if who == "a watcher":
            health = await clients.enter_async_context(health_of(service))
            watch = health.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
        else:
            first = http2.hello() if who == "a connection without calls" else b""
            _, writer = await http2.connected(service.address, first)
            clients.callback(writer.close)
        # Time to arrive.
        await asyncio.sleep(0.05)
        async with asyncio.timeout(BOUND_S):
            await server.aclose()
        if who == "a watcher":
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watch.code() is grpc.StatusCode.OK


async def test_reflection_that_pauses_ends_well(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = PublicServiceLimits._read, itertools.count()

    async def read_patiently(self: PublicServiceLimits, parse: Any, rpc: Any) -> Any:
        """Give up the third request at once, and neither of those that come."""
        monkeypatch.setattr(public_services, "PROMPT_S", 0.01 if next(reads) == 2 else 600.0)
        return await read(self, parse, rpc)

    monkeypatch.setattr(PublicServiceLimits, "_read", read_patiently)
    monkeypatch.setattr(public_services, "_READ_TIMEOUT_S", 600.0)
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        for _ in range(2):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            assert len(answer.list_services_response.service) == 4
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_who_watches_is_told_though_others_leave() -> None:
    request = health_pb2.HealthCheckRequest()
    serving = health_pb2.HealthCheckResponse.SERVING
    engine = UnavailableEngine()
    async with running(settings_with(), engine=engine) as service, health_of(service) as health:
        staying, leaving = health.Watch(request), health.Watch(request)
        assert [(await watch.read()).status for watch in (staying, leaving)] == [serving] * 2
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        leaving.cancel()
        # Time for the server to notice.
        await asyncio.sleep(0.05)
        engine.away = True
        answer = await asyncio.wait_for(staying.read(), BOUND_S)

    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_an_unknown_name_has_no_health() -> None:
    async with running(settings_with()) as service, health_of(service) as health:
        call = health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert await call.code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_leaves_while_it_sends_has_cancelled() -> None:
    async with running(settings_with()) as service:
        _, writer = await opened(service.address, "Embed", {})
        writer.write(http2.frame(http2.DATA, 0, 1, b"\0\0\x01\0\0half"))
        # CANCEL, RFC 9113 section 7.
        writer.write(http2.frame(http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        await writer.drain()
        labels = {"grpc_method": "Embed", "grpc_code": "CANCELLED"}
        await until(lambda: total(service.metrics.registry, "grpc_server_handled_total", **labels))
        writer.close()


async def takes_watch(health: health_pb2_grpc.HealthStub) -> bool:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        await watch.read()
    except grpc.aio.AioRpcError:
        return False
    watch.cancel()
    return True
