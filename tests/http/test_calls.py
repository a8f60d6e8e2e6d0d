"""Calls over HTTP go through the pipeline of all calls: credentials, deadlines, quotas."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from samserve.v1 import samserve_pb2 as pb

from tests import sample_images
from tests.http.clients import PROTOCOLS, HttpCaller
from tests.http.serving import http_service
from tests.http.wire import JSON, SERVICE, connected
from tests.metric_values import total
from tests.rpc.errors import failure_of
from tests.rpc.test_call_log import calls, caught
from tests.security.credentials import KeyFile, bearer
from tests.support.engines import PausedEngine, wait_for_encodes
from tests.support.waiting import TIMEOUT_S, until

LIST, EMBED, AUTOMASK = SERVICE + "ListModels", SERVICE + "Embed", SERVICE + "AutoMask"
IMAGE = sample_images.image()


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_credentials_are_checked_before_the_request_arrives(
    protocol: str, key_file: KeyFile
) -> None:
    key_file.add("acme", "embed")
    async with http_service(auth={"api_keys_file": key_file.path}) as service:
        caller = HttpCaller(service.http_address, protocol)
        headers = [("content-type", caller.content_type("Embed")), ("content-length", "60000000")]
        async with connected(service.http_address) as wire:
            # Of the body, nothing is sent.
            wire.send(wire.head(EMBED, headers))
            response = await wire.response()

    with pytest.raises(Exception, match="UNAUTHENTICATED"):
        caller.read("Embed", response)
    if response.status != 200:
        assert (response.status, response.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_roles_and_keys_are_those_of_grpc(protocol: str, key_file: KeyFile) -> None:
    may, may_not = key_file.add("acme", "embed"), key_file.add("acme", "automask")
    async with http_service(auth={"api_keys_file": key_file.path}) as service:
        caller = HttpCaller(service.http_address, protocol)
        request = pb.EmbedRequest(image=IMAGE)

        assert (await caller.call("Embed", request, bearer(may))).embedding.id
        failure = await failure_of(caller.call("Embed", request, bearer(may_not)))
        assert (failure.reason, failure.metadata["permission"]) == ("PERMISSION_DENIED", "embed")
        for headers in (
            [("authorization", "Basic YTpi")],
            [("authorization", f"bearer {may}"), ("authorization", f"bearer {may}")],
        ):
            failure = await failure_of(caller.call("Embed", request, headers))
            assert failure.reason == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    ("protocol", "deadline"),
    [("connect", "100"), ("json", "100"), ("grpc_web", "100m"), ("grpc_web_text", "100000u")],
)
async def test_deadlines_of_clients_end_calls(protocol: str, deadline: str) -> None:
    engine = PausedEngine()
    async with http_service(engine) as service:
        caller = HttpCaller(service.http_address, protocol)
        failure = await failure_of(
            caller.messages("Embed", pb.EmbedRequest(image=IMAGE), deadline=deadline)
        )
        # The call has ended; so has its work.
        assert total(service.metrics.registry, "samserve_inflight_requests") == 0

    assert failure.reason == "DEADLINE_EXCEEDED"
    assert failure.metadata["stage"]


@pytest.mark.parametrize(
    ("protocol", "deadline"),
    [
        *(("connect", text) for text in ("x", "-1", "1.5", "12345678901", "1 1")),
        *(("grpc_web", text) for text in ("1", "S", "123456789S", "-1S", "1x", "1.5S")),
    ],
)
async def test_invalid_deadlines_are_rejected(protocol: str, deadline: str) -> None:
    header = "grpc-timeout" if protocol == "grpc_web" else "connect-timeout-ms"
    async with http_service() as service:
        caller = HttpCaller(service.http_address, protocol)
        call = caller.messages("ListModels", pb.ListModelsRequest(), deadline=deadline)
        failure = await failure_of(call)

    assert failure.fields == [header]


@pytest.mark.parametrize("version", ["0", "2", "x"])
async def test_other_versions_of_connect_are_rejected(version: str) -> None:
    async with http_service() as service:
        caller = HttpCaller(service.http_address, "connect")
        headers = [("connect-protocol-version", version)]
        failure = await failure_of(caller.call("ListModels", pb.ListModelsRequest(), headers))
        good = [("connect-protocol-version", "1")]
        assert (await caller.call("ListModels", pb.ListModelsRequest(), good)).models

    assert failure.fields == ["connect-protocol-version"]


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_quotas_and_limits_are_shared_with_grpc(protocol: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text("version = 1\n[quotas.default]\nrequests_per_s = 0.001\nburst = 1\n")
    async with http_service(auth={"policy_file": policy}) as service:
        caller = HttpCaller(service.http_address, protocol)
        await caller.call("ListModels", pb.ListModelsRequest())
        failure = await failure_of(caller.call("ListModels", pb.ListModelsRequest()))
        async with connected(service.http_address) as wire:
            response = await wire.request(LIST, b"{}", [JSON])

    assert (failure.reason, failure.metadata["quota"]) == ("QUOTA_EXCEEDED", "requests_per_s")
    assert failure.retry_after_s
    assert failure.quota_subject == "tenant:default"
    assert response.status == 429
    assert 900 < int(response.headers["retry-after"]) <= 1000


async def test_concurrent_calls_are_limited() -> None:
    engine = PausedEngine()
    async with http_service(engine, admission={"max_concurrent_embed": 1}) as service:
        caller = HttpCaller(service.http_address, "connect")
        first = asyncio.create_task(caller.call("Embed", pb.EmbedRequest(image=IMAGE)))
        await engine.waiting.wait()
        other = pb.EmbedRequest(image=sample_images.image(seed=1))
        failure = await failure_of(caller.call("Embed", other))
        engine.go.set()
        assert (await first).embedding.id

    assert (failure.reason, failure.metadata["resource"]) == ("OVERLOADED", "calls")


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_client_that_disconnects_cancels_its_call(protocol: str) -> None:
    engine = PausedEngine()
    async with http_service(engine) as service:
        caller, registry = HttpCaller(service.http_address, protocol), service.metrics.registry
        call = asyncio.create_task(caller.call("Embed", pb.EmbedRequest(image=IMAGE)))
        await engine.waiting.wait()
        call.cancel()
        cancelled = {"grpc_method": "Embed", "grpc_code": "CANCELLED"}
        await until(lambda: total(registry, "grpc_server_handled_total", **cancelled) == 1)

        assert total(registry, "samserve_inflight_requests") == 0


async def test_a_client_that_disconnects_after_a_large_request_cancels_its_call() -> None:
    engine = PausedEngine()
    image = sample_images.image(300, 300)
    assert len(image.encoded) > 1 << 17
    async with http_service(engine) as service:
        caller, registry = HttpCaller(service.http_address, "connect"), service.metrics.registry
        call = asyncio.create_task(caller.call("Embed", pb.EmbedRequest(image=image)))
        await engine.waiting.wait()
        call.cancel()
        await until(lambda: total(registry, "grpc_server_handled_total", grpc_code="CANCELLED"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_a_cancelled_stream_stops_the_work_of_the_server(protocol: str) -> None:
    async with http_service() as service:
        caller, registry = HttpCaller(service.http_address, protocol), service.metrics.registry
        options = pb.AutoMaskOptions(points_per_side=32, points_per_batch=1)
        request = pb.AutoMaskRequest(image=IMAGE, options=options)
        body = caller.encoded("AutoMask", request)
        headers = [
            ("content-type", caller.content_type("AutoMask")),
            ("content-length", str(len(body))),
        ]
        async with connected(service.http_address) as wire:
            wire.send(wire.head(AUTOMASK, headers) + body)
            async with asyncio.timeout(TIMEOUT_S):
                status, _ = await wire.response_head()
                # Progress arrives while the call runs.
                await wire.reader.readexactly(10)
            assert status == 200
        cancelled = {"grpc_method": "AutoMask", "grpc_code": "CANCELLED"}
        await until(lambda: total(registry, "grpc_server_handled_total", **cancelled) == 1)
        decoded = service.engine.counts["decode_begun"]
        assert decoded < 1024
        async with connected(service.http_address) as wire:
            assert (await wire.request(LIST, b"{}", [JSON])).status == 200
        assert service.engine.counts["decode_begun"] == decoded


async def test_calls_are_counted_and_logged_by_protocol(
    capsys: pytest.CaptureFixture[str],
) -> None:
    logged = caught(capsys)
    async with http_service() as service:
        for protocol in PROTOCOLS:
            caller = HttpCaller(service.http_address, protocol)
            await caller.call("ListModels", pb.ListModelsRequest())
        registry = service.metrics.registry
        counted = {
            protocol: total(registry, "samserve_http_calls_total", protocol=protocol)
            for protocol in ("connect", "json", "grpc_web")
        }
        assert total(registry, "grpc_server_handled_total", grpc_method="ListModels") == 4

    assert counted == {"connect": 1, "json": 1, "grpc_web": 2}
    lines = [line["protocol"] for line in calls(logged())]
    assert lines == ["connect", "json", "grpc_web", "grpc_web"]


async def test_calls_in_flight_end_before_the_server_stops() -> None:
    engine = PausedEngine()
    context = http_service(engine)
    service = await context.__aenter__()
    caller = HttpCaller(service.http_address, "json")
    call = asyncio.create_task(caller.call("Embed", pb.EmbedRequest(image=IMAGE)))
    async with connected(service.http_address) as idle:
        await engine.waiting.wait()
        stopping = asyncio.create_task(context.__aexit__(None, None, None))
        # An idle connection closes at once, and no new one is accepted.
        assert await idle.closed() == b""
        assert not stopping.done()
        engine.go.set()
        assert (await call).embedding.id
        await stopping
    with pytest.raises(ConnectionError):
        async with connected(service.http_address):
            pass


async def test_calls_that_outlast_the_grace_period_are_cancelled() -> None:
    engine = PausedEngine()
    async with http_service(engine, server={"grace_period_s": 0.1}) as service:
        caller = HttpCaller(service.http_address, "json")
        call = asyncio.create_task(caller.call("Embed", pb.EmbedRequest(image=IMAGE)))
        await wait_for_encodes(engine, 0)
        await engine.waiting.wait()

    with pytest.raises(Exception, match=r"bytes read|reset"):
        await call
