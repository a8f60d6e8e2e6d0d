"""Health, deadlines, admission, request ids, logs, errors and shutdown."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samserve import app
from samserve.app import Running, running
from samserve.calls import access_log
from samserve.calls.methods import METHODS
from samserve.engines.fake import FakeEngine
from samserve.errors import Unavailable
from samserve.rpc.methods import SERVICE
from samserve.rpc.server import ApiServer
from samserve.stages import StageClock
from samserve.telemetry.tracing.base import NoTracing
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with
from tests.metric_values import total
from tests.rpc.errors import failure_of, finish
from tests.support.clock import Clock, advance_loop
from tests.support.engines import PausedEngine, UnavailableEngine
from tests.support.waiting import TIMEOUT_S, until

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(address: str, name: str, **options: Any) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        response = await stub.Check(health_pb2.HealthCheckRequest(service=name), **options)
        return int(response.status)


async def http(service: Running, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{service.admin_address}{path}") as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_health_reports_serving_under_every_name(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    address = service[0].address

    statuses = [await health(address, name) for name in ("", SERVICE, "live")]

    assert statuses == [SERVING] * 3


async def test_server_is_not_ready_before_the_warm_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, stop = asyncio.Event(), asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    started = asyncio.Event()

    class Listening(ApiServer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            listening.set_result(f"127.0.0.1:{self.port}")

    monkeypatch.setattr(app, "ApiServer", Listening)

    async def run() -> None:
        engine = FakeEngine()
        engine.hold(hold)
        async with running(settings_with(), engine=engine):
            started.set()
            await stop.wait()

    task = asyncio.create_task(run())
    address = await listening
    before = [await eventually_health(address, name) for name in ("", SERVICE, "live")]
    hold.set()
    await started.wait()
    await until(lambda: serves(address))
    stop.set()
    await task

    assert before == [NOT_SERVING, NOT_SERVING, SERVING]


async def serves(address: str) -> bool:
    return await health(address, "") == SERVING


async def eventually_health(address: str, name: str) -> int:
    return await health(address, name, wait_for_ready=True, timeout=TIMEOUT_S)


async def test_admin_listener_reports_liveness_readiness_and_metrics(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    running_service, stub = service
    await stub.Embed(pb.EmbedRequest(image=sample_images.image()))

    assert await http(running_service, "/livez") == (200, "ok\n")
    assert await http(running_service, "/readyz") == (200, "ok\n")
    assert (await http(running_service, "/secrets"))[0] == 404
    metrics = (await http(running_service, "/metrics"))[1]
    assert (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Embed",'
        f'grpc_service="{SERVICE}",grpc_type="unary"}} 1.0' in metrics
    )
    assert "samserve_cache_local_entries 1.0" in metrics


async def engine_is(service: Running, ready: float) -> bool:
    return f"samserve_engine_ready {ready}" in (await http(service, "/metrics"))[1]


@pytest.mark.parametrize(("readiness", "status"), [("engine", 503), ("started", 200)])
async def test_readiness_follows_the_setting(readiness: str, status: int) -> None:
    engine = UnavailableEngine()
    settings = settings_with(server={"readiness": readiness})
    async with serving(settings, engine=engine) as (running_service, _):
        assert (await http(running_service, "/readyz"))[0] == 200
        engine.unavailable = True
        await until(lambda: engine_is(running_service, 0.0))

        assert (await http(running_service, "/readyz"))[0] == status
        health = await eventually_health(running_service.address, "")
        assert (health == SERVING) is (status == 200)
        engine.unavailable = False
        await until(lambda: engine_is(running_service, 1.0))
        assert (await http(running_service, "/readyz"))[0] == 200


async def test_default_deadline_ends_a_call_and_names_the_stage() -> None:
    engine = PausedEngine()
    async with serving(settings_with(deadlines={"embed_s": 500}), engine=engine) as (service, stub):
        call = stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        failing = asyncio.create_task(failure_of(call))
        await engine.waiting.wait()
        await advance_loop(400)
        assert not call.done()
        await advance_loop(200)
        failure = await failing
        await until(lambda: not service.cache.stats().bytes)

    assert (failure.code, failure.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert failure.metadata["stage"] == "encode"


async def test_deadline_passed_at_the_client_is_counted_as_deadline_exceeded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine a call may take long to arrive.
    monkeypatch.setattr(access_log, "_NETWORK_DELAY_S", 10.0)
    engine = PausedEngine()
    labels = {"grpc_method": "Embed", "grpc_code": "DEADLINE_EXCEEDED"}
    async with serving(engine=engine) as (service, stub):
        # A call that never leaves the client does not reach the server.
        for timeout_s in (0.1, 1, 10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(pb.EmbedRequest(image=sample_images.image()), timeout=timeout_s)
            if engine.waiting.is_set():
                break
        await until(lambda: total(service.metrics.registry, "grpc_server_handled_total", **labels))

    assert caught.value.code() is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("passed_s", "remaining_s", "code"),
    [
        (10.0, 0.0, Code.DEADLINE_EXCEEDED),
        (10.0, -1.0, Code.DEADLINE_EXCEEDED),
        # The timers of client and server differ by up to one percent and the network delay.
        (10.0, 0.1, Code.DEADLINE_EXCEEDED),
        (10.0, 0.2, Code.CANCELLED),
        (0.1, 0.02, Code.DEADLINE_EXCEEDED),
        (0.1, 0.04, Code.CANCELLED),
        (0.1, 60.0, Code.CANCELLED),
    ],
)
def test_cancellation_at_the_deadline_is_deadline_exceeded_and_cancelled_before_it(
    monkeypatch: pytest.MonkeyPatch, passed_s: float, remaining_s: float, code: grpc.StatusCode
) -> None:
    clock = Clock()
    monkeypatch.setattr(access_log, "_now", clock)
    trace = NoTracing().begin(SERVICE, "Embed", ())
    call = access_log.OpenCall(METHODS[0], trace, StageClock(clock))
    clock.now += passed_s
    call.record_cancellation(remaining_s)

    assert call.code.name == code.name


async def test_shutdown_lets_running_calls_finish() -> None:
    engine = PausedEngine()
    settings = settings_with(
        server={"drain_delay_s": 600, "grace_period_s": TIMEOUT_S}, deadlines={"embed_s": 6000}
    )
    server = running(settings, engine=engine)
    service = await server.__aenter__()
    async with grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel:
        stub, image = SegmentationServiceStub(channel), sample_images.image()
        pending = asyncio.create_task(finish(stub.Embed(pb.EmbedRequest(image=image))))
        await engine.waiting.wait()
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert (await watch.read()).status == SERVING
        stopping = asyncio.ensure_future(server.__aexit__(None, None, None))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await advance_loop(600)
        engine.go.set()
        response = await pending
        await stopping

    assert response.embedding.id
    with pytest.raises(grpc.aio.AioRpcError):
        await health(service.address, "")


async def test_port_in_use_raises_unavailable(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    port = int(service[0].address.rsplit(":", 1)[1])

    text = rf"cannot listen on 127.0.0.1:{port}: Address already in use"
    with pytest.raises(Unavailable, match=text):
        async with running(settings_with(server={"port": port}), engine=FakeEngine()):
            pass
