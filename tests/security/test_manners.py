"""What is decided before a request is read, and manners of connections."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from samserve import logs
from samserve.app import running
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput
from samserve.engines.fake import FakeEngine
from samserve.principal import WARM_UP, Permission
from samserve.rpc.bystanders import MOST_CALLS
from samserve.settings import LogSettings
from samserve.stores.base import Slot
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests import pictures
from tests.conftest import UNLIMITED, settings_with
from tests.samples import total
from tests.security import http2
from tests.security.credentials import KeyFile, bearer

METHODS = [method.name for method in pb.DESCRIPTOR.services_by_name["SegmentationService"].methods]
REFUSALS = {
    "no credentials": "UNAUTHENTICATED",
    "wrong role": "PERMISSION_DENIED",
    "over quota": "RESOURCE_EXHAUSTED",
    "server full": "RESOURCE_EXHAUSTED",
}
SERVICE = pb.DESCRIPTOR.services_by_name["SegmentationService"]


def guarded(key_file: KeyFile, **sections: Any) -> Any:
    return running(settings_with(auth={"keys_file": key_file.path}, **sections))


@pytest.mark.parametrize(
    ("why", "method"),
    [*itertools.product(["no credentials", "wrong role", "over quota", "server full"], METHODS)],
)
async def test_refusals_do_not_wait_for_the_request(
    key_file: KeyFile, tmp_path: Path, why: str, method: str
) -> None:
    """The client opens the call and sends nothing of its request: the answer comes all the same."""
    roles = [] if why == "wrong role" else [permission.value for permission in Permission]
    key = key_file.add("acme", *roles)
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n[quotas.default]\nrequests_per_s = 0.001\nburst = 1\n")
    sections: dict[str, Any] = {"auth": {"keys_file": key_file.path}}
    if why == "over quota":
        sections["auth"]["policy_file"] = policy
    if why == "server full":
        sections["admission"] = {"embed": 1, "predict": 1, "automask": 1, "other": 1}
    headers = {} if why == "no credentials" else {"authorization": f"Bearer {key}"}
    async with running(settings_with(**sections)) as service:
        host, port = service.address.rsplit(":", 1)
        # The first takes the token of the rate, or the only place, and keeps it.
        first = await opened(host, int(port), method, headers)
        reader, writer = await opened(host, int(port), method, headers)
        status = await asyncio.wait_for(http2.status_of_stream(reader), 10)
        for _, each in (first, (reader, writer)):
            each.close()

    assert status == REFUSALS[why]


async def opened(
    host: str, port: int, method: str, headers: dict[str, str]
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection(host, port)
    path = f"/{SERVICE.full_name}/{method}"
    writer.write(http2.hello() + http2.call_headers(path, host, **headers))
    await writer.drain()
    await asyncio.sleep(0.1)
    return reader, writer


async def test_who_may_call_is_waited_for(key_file: KeyFile) -> None:
    """The control of the test above: without a refusal nothing comes before the request."""
    key = key_file.add("acme", "embed")
    async with guarded(key_file) as service:
        host, port = service.address.rsplit(":", 1)
        reader, writer = await opened(host, int(port), "Embed", {"authorization": f"Bearer {key}"})
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(http2.status_of_stream(reader), 0.5)
        writer.close()


async def test_who_pings_too_often_is_sent_away() -> None:
    async with running(settings_with()) as service:
        host, port = service.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(http2.hello())
        writer.write(http2.frame(http2.PING, 0, 0, bytes(8)) * 20)

        farewell = await asyncio.wait_for(http2.until_goaway(reader), 10)
        writer.close()

    # ENHANCE_YOUR_CALM, RFC 9113 section 7.
    assert int.from_bytes(farewell[4:8], "big") == 0xB
    assert farewell[8:] == b"too_many_pings"


async def test_connections_end_for_age_and_lose_no_call() -> None:
    server = {"connection_age_s": 0.3, "grace_s": 5}
    async with running(settings_with(server=server)) as service:
        host, port = service.address.rsplit(":", 1)
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(http2.hello())
        ending = asyncio.create_task(http2.until_goaway(reader))
        async with grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel:
            stub = samserve_pb2_grpc.SegmentationServiceStub(channel)
            for _ in range(300):
                await stub.ListModels(pb.ListModelsRequest())
                await asyncio.sleep(0.005)
        farewell = await asyncio.wait_for(ending, 10)
        writer.close()

    assert int.from_bytes(farewell[4:8], "big") == 0  # NO_ERROR


async def test_streams_without_credentials_are_so_many(key_file: KeyFile) -> None:
    key = bearer(key_file.add("acme", "embed"))
    request = health_pb2.HealthCheckRequest()
    async with (
        guarded(key_file, server={"streams": 1000}) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as another,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        # One connection gets three quarters of all.
        watches = [health.Watch(request) for _ in range(MOST_CALLS * 3 // 4)]
        await asyncio.gather(*(watch.read() for watch in watches))
        one_more = health.Watch(request)
        assert await one_more.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Nobody else notices: not who checks, nor who watches elsewhere, nor who has credentials.
        await health.Check(request)
        elsewhere = health_pb2_grpc.HealthStub(another).Watch(request)
        await elsewhere.read()
        elsewhere.cancel()
        stub = samserve_pb2_grpc.SegmentationServiceStub(channel)
        await stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=pictures.png())), metadata=key)
        watches.pop().cancel()
        async with asyncio.timeout(10):
            while await takes_no_watch(health):
                await asyncio.sleep(0.02)
        for watch in watches:
            watch.cancel()


async def test_health_is_answered_while_a_stranger_holds_its_requests_back() -> None:
    request = health_pb2.HealthCheckRequest()
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        host, port = service.address.rsplit(":", 1)
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(http2.hello())
        for stream in range(1, 200, 2):
            call = bytearray(http2.call_headers("/grpc.health.v1.Health/Check", host))
            call[5:9] = stream.to_bytes(4, "big")
            writer.write(bytes(call))
        await writer.drain()
        await asyncio.sleep(0.1)
        health = health_pb2_grpc.HealthStub(channel)
        # A hundred calls that wait for a second each, four at a time, would be before this one.
        for _ in range(3):
            await health.Check(request, timeout=5)
        writer.close()


@pytest.mark.parametrize("who", ["a watcher", "a silent connection", "a connection without calls"])
async def test_nobody_who_only_listens_holds_up_the_end(who: str) -> None:
    loop = asyncio.get_running_loop()
    async with AsyncExitStack() as clients:
        patience = {"grace_s": 250, "handshake_s": 250, "idle_s": 250}
        async with running(settings_with(server=patience)) as service:
            host, port = service.address.rsplit(":", 1)
            if who == "a watcher":
                channel = await clients.enter_async_context(
                    grpc.aio.insecure_channel(service.address, options=UNLIMITED)
                )
                watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
                await watch.read()
            else:
                _, writer = await asyncio.open_connection(host, int(port))
                clients.callback(writer.close)
                writer.write(http2.hello() if who == "a connection without calls" else b"")
            await asyncio.sleep(0.1)
            began = loop.time()
        # Far from the grace, which is what it would take otherwise.
        assert loop.time() - began < 60
        if who == "a watcher":
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert await watch.code() is grpc.StatusCode.OK


async def test_reflection_that_pauses_ends_in_order() -> None:
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        for _ in range(2):
            await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
            answer = await call.read()
            assert len(answer.list_services_response.service) == 3
        assert await call.read() is grpc.aio.EOF
        assert await call.code() is grpc.StatusCode.OK


class Leaving(FakeEngine):
    """Can be away."""

    away = False

    async def ready(self) -> bool:
        return not self.away


async def test_who_watches_is_told_though_others_leave() -> None:
    request = health_pb2.HealthCheckRequest()
    serving = health_pb2.HealthCheckResponse.SERVING
    engine = Leaving()
    async with (
        running(settings_with(), engine=engine) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        staying, leaving = health.Watch(request), health.Watch(request)
        assert [(await watch.read()).status for watch in (staying, leaving)] == [serving] * 2
        unknown = health.Watch(health_pb2.HealthCheckRequest(service="nobody"))
        assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
        leaving.cancel()
        await asyncio.sleep(0.1)
        engine.away = True
        answer = await asyncio.wait_for(staying.read(), 10)

    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_an_unknown_name_has_no_health() -> None:
    async with (
        running(settings_with()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        health = health_pb2_grpc.HealthStub(channel)
        call = health.Check(health_pb2.HealthCheckRequest(service="nobody"))
        assert await call.code() is grpc.StatusCode.NOT_FOUND


async def test_a_client_that_leaves_while_it_sends_has_cancelled() -> None:
    async with running(settings_with()) as service:
        host, port = service.address.rsplit(":", 1)
        _, writer = await opened(host, int(port), "Embed", {})
        writer.write(http2.frame(http2.DATA, 0, 1, b"\0\0\x01\0\0half"))
        # CANCEL, RFC 9113 section 7.
        writer.write(http2.frame(http2.RST_STREAM, 0, 1, (8).to_bytes(4, "big")))
        await writer.drain()
        labels = {"grpc_method": "Embed", "grpc_code": "CANCELLED"}
        async with asyncio.timeout(10):
            while not total(service.metrics.registry, "grpc_server_handled_total", **labels):
                await asyncio.sleep(0.02)
        writer.close()


async def takes_no_watch(health: health_pb2_grpc.HealthStub) -> bool:
    watch = health.Watch(health_pb2.HealthCheckRequest())
    try:
        await watch.read()
    except grpc.aio.AioRpcError:
        return True
    watch.cancel()
    return False


class Broken(FakeEngine):
    """Fails as no engine should, with everything at hand in its frames."""

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if context.principal is WARM_UP:
            return await super().encode(model, image, into, context)
        raise RuntimeError("something that nobody has foreseen")


@pytest.mark.parametrize("kind", ["json", "console"])
async def test_a_crash_tells_its_trace_and_no_secret(
    key_file: KeyFile,
    capsys: pytest.CaptureFixture[str],
    kind: Any,
) -> None:
    key = key_file.add("acme", "embed")
    settings = settings_with(auth={"keys_file": key_file.path})
    logs.configure(LogSettings(format=kind))
    async with (
        running(settings, engine=Broken()) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        stub = samserve_pb2_grpc.SegmentationServiceStub(channel)
        request = pb.EmbedRequest(image=pb.Image(encoded=pictures.png()))
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await stub.Embed(request, metadata=bearer(key))
    err = capsys.readouterr().err

    assert failed.value.code() is grpc.StatusCode.INTERNAL
    assert "foreseen" not in (failed.value.details() or "")
    assert "something that nobody has foreseen" in err
    assert "Traceback" in err
    assert key.split("_", 2)[2] not in err
