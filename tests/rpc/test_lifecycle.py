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

from tests import pictures
from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import failure_of, finish
from tests.samples import total
from tests.support.clock import Clock, pass_on_the_loop
from tests.support.engines import HeldEngine, UnavailableEngine
from tests.support.waiting import BOUND_S, until

Code = grpc.StatusCode
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(address: str, name: str, **options: Any) -> int:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name), **options)
        return int(answer.status)


async def http(service: Running, path: str) -> tuple[int, str]:
    def get() -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://{service.admin_address}{path}") as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    return await asyncio.to_thread(get)


async def test_health_says_serving_under_every_name(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    address = service[0].address

    statuses = [await health(address, name) for name in ("", SERVICE, "live")]

    assert statuses == [SERVING] * 3


async def test_nothing_is_ready_before_the_warm_up_has_inferred(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hold, stop = asyncio.Event(), asyncio.Event()
    listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    started = asyncio.Event()

    class Listening(ApiServer):
        def __init__(self, *args: Any, **more: Any) -> None:
            super().__init__(*args, **more)
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
    return await health(address, name, wait_for_ready=True, timeout=BOUND_S)


async def test_the_admin_listener_tells_liveness_readiness_and_metrics(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    running_service, stub = service
    await stub.Embed(pb.EmbedRequest(image=pictures.image()))

    assert await http(running_service, "/livez") == (200, "ok\n")
    assert await http(running_service, "/readyz") == (200, "ok\n")
    assert (await http(running_service, "/secrets"))[0] == 404
    metrics = (await http(running_service, "/metrics"))[1]
    assert (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Embed",'
        f'grpc_service="{SERVICE}",grpc_type="unary"}} 1.0' in metrics
    )
    assert "samserve_store_entries 1.0" in metrics


async def engine_is(service: Running, ready: float) -> bool:
    return f"samserve_engine_ready {ready}" in (await http(service, "/metrics"))[1]


@pytest.mark.parametrize(("readiness", "status"), [("engine", 503), ("started", 200)])
async def test_readiness_takes_what_the_settings_say(readiness: str, status: int) -> None:
    engine = UnavailableEngine()
    settings = settings_with(server={"readiness": readiness})
    async with serving(settings, engine=engine) as (running_service, _):
        assert (await http(running_service, "/readyz"))[0] == 200
        engine.away = True
        await until(lambda: engine_is(running_service, 0.0))

        assert (await http(running_service, "/readyz"))[0] == status
        health = await eventually_health(running_service.address, "")
        assert (health == SERVING) is (status == 200)
        engine.away = False
        await until(lambda: engine_is(running_service, 1.0))
        assert (await http(running_service, "/readyz"))[0] == 200


async def test_the_default_deadline_ends_a_call_and_names_the_stage() -> None:
    engine = HeldEngine()
    async with serving(settings_with(deadlines={"embed_s": 500}), engine=engine) as (service, stub):
        call = stub.Embed(pb.EmbedRequest(image=pictures.image()))
        failing = asyncio.create_task(failure_of(call))
        await engine.waiting.wait()
        await pass_on_the_loop(400)
        assert not call.done()
        await pass_on_the_loop(200)
        failure = await failing
        await until(lambda: not service.store.stats().bytes)

    assert (failure.code, failure.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")
    assert failure.metadata["stage"] == "encode"


async def test_a_call_that_outlives_its_client_s_deadline_is_counted_as_such(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # On a busy machine a call is on its way for long.
    monkeypatch.setattr(access_log, "_ON_THE_WAY_S", 10.0)
    engine = HeldEngine()
    labels = {"grpc_method": "Embed", "grpc_code": "DEADLINE_EXCEEDED"}
    async with serving(engine=engine) as (service, stub):
        # What never leaves the client is no call to the server.
        for timeout_s in (0.1, 1, 10):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stub.Embed(pb.EmbedRequest(image=pictures.image()), timeout=timeout_s)
            if engine.waiting.is_set():
                break
        await until(lambda: total(service.metrics.registry, "grpc_server_handled_total", **labels))

    assert caught.value.code() is Code.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("passed_s", "remaining_s", "code"),
    [
        (10.0, 0.0, Code.DEADLINE_EXCEEDED),
        (10.0, -1.0, Code.DEADLINE_EXCEEDED),
        # A client's timer and the server's differ by up to one in a hundred, and by the way.
        (10.0, 0.1, Code.DEADLINE_EXCEEDED),
        (10.0, 0.2, Code.CANCELLED),
        (0.1, 0.02, Code.DEADLINE_EXCEEDED),
        (0.1, 0.04, Code.CANCELLED),
        (0.1, 60.0, Code.CANCELLED),
    ],
)
def test_a_client_that_leaves_at_its_deadline_is_late_and_before_it_has_cancelled(
    monkeypatch: pytest.MonkeyPatch, passed_s: float, remaining_s: float, code: grpc.StatusCode
) -> None:
    clock = Clock()
    monkeypatch.setattr(access_log, "_now", clock)
    trace = NoTracing().begin(SERVICE, "Embed", ())
    entry = access_log.OpenCall(METHODS[0], trace, StageClock(clock))
    clock.now += passed_s
    entry.cancelled(remaining_s)

    assert entry.code.name == code.name


async def test_shutdown_lets_running_calls_finish() -> None:
    engine = HeldEngine()
    settings = settings_with(
        server={"drain_s": 600, "grace_s": BOUND_S}, deadlines={"embed_s": 6000}
    )
    server = running(settings, engine=engine)
    service = await server.__aenter__()
    async with grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel:
        stub, image = SegmentationServiceStub(channel), pictures.image()
        pending = asyncio.create_task(finish(stub.Embed(pb.EmbedRequest(image=image))))
        await engine.waiting.wait()
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(service=SERVICE)
        )
        assert (await watch.read()).status == SERVING
        leaving = asyncio.ensure_future(server.__aexit__(None, None, None))
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        await pass_on_the_loop(600)
        engine.go.set()
        answer = await pending
        await leaving

    assert answer.embedding.id
    with pytest.raises(grpc.aio.AioRpcError):
        await health(service.address, "")


async def test_a_port_in_use_is_one_clear_error(
    service: tuple[Running, SegmentationServiceStub],
) -> None:
    port = int(service[0].address.rsplit(":", 1)[1])

    refusal = rf"cannot listen on 127.0.0.1:{port}: Address already in use"
    with pytest.raises(Unavailable, match=refusal):
        async with running(settings_with(server={"port": port}), engine=FakeEngine()):
            pass
