"""Decisions before a request is read, and limits of connections."""

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

from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with
from tests.metric_values import total
from tests.security import http2
from tests.security.credentials import KeyFile, bearer
from tests.support.engines import UnavailableEngine
from tests.support.waiting import TIMEOUT_S, until

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
def no_read_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable the timeout of requests that do not arrive at once."""
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 600.0)


@pytest.mark.usefixtures("no_read_timeout")
async def test_a_rejected_call_does_not_wait_for_its_request(key_file: KeyFile) -> None:
    """The client opens the call and sends no request; the status is returned nevertheless."""
    statuses = {}
    async with running(settings_with(auth={"api_keys_file": key_file.path})) as service:
        for method in METHODS:
            reader, writer = await opened(service.address, method, {})
            async with asyncio.timeout(TIMEOUT_S):
                statuses[method] = await http2.status_of_stream(reader)
            writer.close()

    assert statuses == dict.fromkeys(METHODS, "UNAUTHENTICATED")


async def opened(
    address: str, method: str, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Open a call without sending its request."""
    call = http2.call_headers(f"/{SERVICE.full_name}/{method}", "localhost", **headers)
    return await http2.connected(address, http2.hello() + call)


@pytest.mark.usefixtures("no_read_timeout")
async def test_an_authenticated_call_waits_for_its_request(key_file: KeyFile) -> None:
    """The control of the test above: an accepted call has no status before its request."""
    key = key_file.add("acme", "embed")
    async with serving(settings_with(auth={"api_keys_file": key_file.path})) as (service, stub):
        headers = {"authorization": f"Bearer {key}"}
        reader, writer = await opened(service.address, "ListModels", headers)
        status = asyncio.create_task(http2.status_of_stream(reader))
        await until(lambda: in_flight(service, "ListModels") == 1)
        # Wait as long as another call takes.
        await stub.Embed(pb.EmbedRequest(image=sample_images.image()), metadata=bearer(key))
        assert not status.done()
        end_stream, empty = 1, bytes(5)
        writer.write(http2.frame(http2.DATA, end_stream, 1, empty))
        async with asyncio.timeout(TIMEOUT_S):
            assert await status == "OK"
        writer.close()


async def test_a_client_that_pings_too_often_is_disconnected() -> None:
    async with running(settings_with()) as service:
        reader, writer = await http2.connected(service.address)
        writer.write(http2.frame(http2.PING, 0, 0, bytes(8)) * 20)

        goaway = await asyncio.wait_for(http2.until_goaway(reader), TIMEOUT_S)
        writer.close()

    # ENHANCE_YOUR_CALM, RFC 9113 section 7.
    assert int.from_bytes(goaway[4:8], "big") == 0xB
    assert goaway[8:] == b"too_many_pings"


async def test_a_client_that_pings_at_the_allowed_rate_stays_connected() -> None:
    interval_s = 0.01
    async with running(settings_with(server={"min_ping_interval_s": interval_s})) as service:
        reader, writer = await http2.connected(service.address)
        # gRPC's default interval is five minutes; the third ping below it would end the connection.
        for number in range(10):
            writer.write(http2.frame(http2.PING, 0, 0, number.to_bytes(8, "big")))
            async with asyncio.timeout(TIMEOUT_S):
                assert await http2.read_ping_ack(reader) == number
            await asyncio.sleep(2 * interval_s)
        writer.close()


async def test_a_maximum_connection_age_fails_no_call() -> None:
    server = {"max_connection_age_s": 0.2, "grace_period_s": 60}
    async with serving(settings_with(server=server)) as (service, stub):
        await stub.ListModels(pb.ListModelsRequest())
        # Two maximum ages in sequence: the channel's connection has ended before the second.
        goaways = []
        for _ in range(2):
            reader, writer = await http2.connected(service.address)
            ending = asyncio.create_task(http2.until_goaway(reader))
            async with asyncio.timeout(TIMEOUT_S):
                while not ending.done():
                    await stub.ListModels(pb.ListModelsRequest())
            goaways.append(ending.result())
            writer.close()

    assert [int.from_bytes(each[4:8], "big") for each in goaways] == [0, 0]  # NO_ERROR


async def test_watches_without_credentials_are_limited(key_file: KeyFile) -> None:
    key = bearer(key_file.add("acme", "embed"))
    request = health_pb2.HealthCheckRequest()
    settings = settings_with(
        auth={"api_keys_file": key_file.path}, server={"max_concurrent_streams": 1000}
    )
    async with (
        serving(settings) as (service, stub),
        health_of(service) as health,
        health_of(service, ("grpc.use_local_subchannel_pool", 1)) as another,
    ):
        # One connection may use three quarters of all slots.
        watches = [health.Watch(request) for _ in range(MAX_CALLS * 3 // 4)]
        await asyncio.gather(*(watch.read() for watch in watches))
        one_more = health.Watch(request)
        assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Checks, watches on other connections and authenticated calls are not affected.
        await health.Check(request)
        elsewhere = another.Watch(request)
        await elsewhere.read()
        elsewhere.cancel()
        await stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=sample_images.png())), metadata=key)
        watches.pop().cancel()
        await until(lambda: accepts_watch(health))
        for watch in watches:
            watch.cancel()


async def test_health_responds_while_another_client_withholds_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Four at a time wait for this timeout: a hundred take 25 times as long.
    monkeypatch.setattr(public_services, "SLOW_AFTER_S", 0.2)
    monkeypatch.setattr(public_services, "_READ_TIMEOUT_S", 600.0)
    async with running(settings_with()) as service, health_of(service) as health:
        reader, writer = await http2.connected(service.address)
        for stream in range(1, 200, 2):
            call = bytearray(http2.call_headers("/grpc.health.v1.Health/Check", "localhost"))
            call[5:9] = stream.to_bytes(4, "big")
            writer.write(bytes(call))
        await writer.drain()
        ended: set[int] = set()
        reading = asyncio.create_task(record_ended_streams(reader, ended))
        await until(lambda: bool(ended))
        await health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
        # Most of them are still queued.
        assert len(ended) < 90
        reading.cancel()
        writer.close()


async def record_ended_streams(reader: asyncio.StreamReader, ended: set[int]) -> None:
    """Record the streams that have a response."""
    while (got := await http2.read_frame(reader)) is not None:
        if got.kind == http2.HEADERS:
            ended.add(got.stream)


@pytest.mark.parametrize(
    "client", ["a watcher", "a silent connection", "a connection without calls"]
)
async def test_an_idle_client_does_not_delay_shutdown(client: str) -> None:
    # Longer than shutdown may take.
    timeouts = {"grace_period_s": 250, "handshake_timeout_s": 250, "idle_timeout_s": 250}
    async with AsyncExitStack() as clients, AsyncExitStack() as server:
        service = await server.enter_async_context(running(settings_with(server=timeouts)))
        if client == "a watcher":
            health = await clients.enter_async_context(health_of(service))
            watch = health.Watch(health_pb2.HealthCheckRequest())
            await watch.read()
        else:
            first = http2.hello() if client == "a connection without calls" else b""
            _, writer = await http2.connected(service.address, first)
            clients.callback(writer.close)
        # Time for the bytes to arrive.
        await asyncio.sleep(0.05)
        async with asyncio.timeout(TIMEOUT_S):
            await server.aclose()
        if client == "a watcher":
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watch.code() is grpc.StatusCode.OK


async def test_an_idle_reflection_stream_ends_with_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    read, reads = PublicServiceLimits._read, itertools.count()

    async def read_with_timeout(self: PublicServiceLimits, parse: Any, rpc: Any) -> Any:
        """Time out at the third request, which does not arrive, and at no other."""
        monkeypatch.setattr(public_services, "SLOW_AFTER_S", 0.01 if next(reads) == 2 else 600.0)
        return await read(self, parse, rpc)

    monkeypatch.setattr(PublicServiceLimits, "_read", read_with_timeout)
    monkeypatch.setattr(public_services, "_READ_TIMEOUT_S", 600.0)
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        for _ in range(2):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            response = await call.read()
            assert len(response.list_services_response.service) == 4
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


async def test_a_watch_is_updated_after_another_is_cancelled() -> None:
    request = health_pb2.HealthCheckRequest()
    serving = health_pb2.HealthCheckResponse.SERVING
    engine = UnavailableEngine()
    async with running(settings_with(), engine=engine) as service, health_of(service) as health:
        staying, leaving = health.Watch(request), health.Watch(request)
        assert [(await watch.read()).status for watch in (staying, leaving)] == [serving] * 2
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="unknown"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        leaving.cancel()
        # Time for the server to process the cancellation.
        await asyncio.sleep(0.05)
        engine.unavailable = True
        update = await asyncio.wait_for(staying.read(), TIMEOUT_S)

    assert update.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_health_of_an_unknown_service_is_not_found() -> None:
    async with running(settings_with()) as service, health_of(service) as health:
        call = health.Check(health_pb2.HealthCheckRequest(service="unknown"))
        assert await call.code() is grpc.StatusCode.NOT_FOUND


async def test_a_reset_during_the_request_counts_as_cancelled() -> None:
    async with running(settings_with()) as service:
        _, writer = await opened(service.address, "Embed", {})
        writer.write(http2.frame(http2.DATA, 0, 1, b"\0\0\x01\0\0half"))
        # CANCEL, RFC 9113 section 7.
        writer.write(http2.frame(http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        await writer.drain()
        labels = {"grpc_method": "Embed", "grpc_code": "CANCELLED"}
        await until(lambda: total(service.metrics.registry, "grpc_server_handled_total", **labels))
        writer.close()


async def accepts_watch(health: health_pb2_grpc.HealthStub) -> bool:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        await watch.read()
    except grpc.aio.AioRpcError:
        return False
    watch.cancel()
    return True
