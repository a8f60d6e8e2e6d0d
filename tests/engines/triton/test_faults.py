"""Triton crashes, hangs and restarts; gateways crash. No wrong result, no restart of a gateway."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samserve.app import Running
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub
from structlog.testing import capture_logs

from harness.triton.ports import free_ports
from harness.triton.server import TritonServer
from tests import engine_choice, sample_images
from tests.conftest import UNLIMITED
from tests.engines.triton import services
from tests.engines.triton.services import Service, is_healthy, runs_in_flight
from tests.rpc.errors import Failure, read
from tests.support.waiting import until
from tests.triton import queries

SHARED_MEMORY = Path("/dev/shm")
DEADLINE_S = 60.0
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton that a test may kill; it is running again for the next test."""
    log = tmp_path_factory.mktemp("faults") / "log"
    with TritonServer(engine_choice.drawing_repository(), log=log) as server:
        yield server


@asynccontextmanager
async def gateway(server: TritonServer) -> AsyncIterator[Service]:
    async with services.gateway(server.grpc_address, shared_memory="required") as service:
        yield service


async def shows(service: Running, *expected: int) -> bool:
    return await health(service) == expected


async def health(service: Running) -> tuple[int, int]:
    """Return the status of the gRPC health service and the HTTP status of /readyz."""
    async with grpc.aio.insecure_channel(service.address) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())

    def get() -> int:
        try:
            with urllib.request.urlopen(f"http://{service.admin_address}/readyz") as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    return reply.status, await asyncio.to_thread(get)


def predict_request(embedding_id: str, x: float) -> pb.PredictRequest:
    return pb.PredictRequest(
        embedding_id=embedding_id, prompts=[sample_images.point_prompt(x, 100)]
    )


async def outcome(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse | Failure:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return read(error)


async def embedded(stub: SegmentationServiceStub, count: int) -> list[str]:
    responses = [
        await stub.Embed(pb.EmbedRequest(image=sample_images.image(200, 300, seed)))
        for seed in range(count)
    ]
    return [response.embedding.id for response in responses]


async def test_gateway_survives_a_crash_of_triton_under_load(triton: TritonServer) -> None:
    async with gateway(triton) as (service, stub):
        ids = await embedded(stub, 6)
        before = [await stub.Predict(predict_request(each, 50)) for each in ids]
        encodes = engine_choice.run_count(service, "encoder")
        assert await health(service) == (SERVING, 200)

        # Paused first, so that all of these calls are in flight when it is killed.
        triton.pause()
        in_flight = [
            asyncio.ensure_future(
                outcome(stub.Predict(predict_request(each, 60), timeout=DEADLINE_S))
            )
            for each in ids * 4
        ]
        await until(lambda: runs_in_flight(service.metrics, "decoder") == len(in_flight))
        assert not any(call.done() for call in in_flight)
        triton.kill()
        failures = await asyncio.gather(*in_flight)
        for failure in failures:
            assert isinstance(failure, Failure)
            assert (failure.code, failure.reason) == (
                grpc.StatusCode.UNAVAILABLE,
                "ENGINE_UNAVAILABLE",
            )
            assert failure.retry_after_s == 1.0
        await until(lambda: not is_healthy(service))
        await until(partial(shows, service, NOT_SERVING, 503))
        while_down = await outcome(stub.Predict(predict_request(ids[0], 50), timeout=DEADLINE_S))
        assert isinstance(while_down, Failure)
        assert while_down.code is grpc.StatusCode.UNAVAILABLE

        triton.start()
        await until(partial(shows, service, SERVING, 200))
        after = [await stub.Predict(predict_request(each, 50), timeout=DEADLINE_S) for each in ids]

        assert [response.results for response in after] == [response.results for response in before]
        assert all(response.embedding.cached for response in after)
        assert engine_choice.run_count(service, "encoder") == encodes
        assert service.engine.transport.value == "shared_memory"
        new = await stub.Embed(pb.EmbedRequest(image=sample_images.image(200, 300, 99)))
        assert not new.embedding.cached
        # All segments are registered with the new Triton, and quarantined memory is free again.
        await until(lambda: service.engine._regions.retired_bytes == 0)  # type: ignore[attr-defined]
        assert service.cache.stats().quarantined_bytes == 0


async def test_gateway_waits_at_startup_until_triton_is_reachable(tmp_path: Path) -> None:
    ports = dict(zip(("grpc_port", "http_port", "metrics_port"), free_ports(3), strict=True))
    server = TritonServer(engine_choice.drawing_repository(), log=tmp_path / "log", **ports)  # type: ignore[arg-type]  # ports are numbers
    with capture_logs() as logs:
        predicting = asyncio.create_task(_first_response(server))
        await until(lambda: [log for log in logs if log["event"] == "waiting for Triton"])
    assert not predicting.done()
    with server:
        assert (await predicting).results


async def _first_response(triton: TritonServer) -> pb.PredictResponse:
    async with gateway(triton) as (_, stub):
        (embedding_id,) = await embedded(stub, 1)
        return await stub.Predict(predict_request(embedding_id, 40))


def start_gateway(server: TritonServer) -> tuple[subprocess.Popen[bytes], str]:
    settings = {
        "server.port": 0,
        "server.admin_port": 0,
        "engine.kind": "triton",
        "triton.url": server.grpc_address,
        "triton.shared_memory": "required",
        "cache.local.capacity_bytes": 32 << 20,
    }
    flags = [f"--set={name}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "-m", "samserve", "serve", *flags], stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"serving .*address=(\S+)", line.decode()):
            return process, found[1]
    raise AssertionError("the gateway did not start")


def regions(server: TritonServer) -> dict[str, str]:
    with queries.client(server) as client:
        status = client.get_system_shared_memory_status()
        return {name: region.key for name, region in status.regions.items()}


def mapped(server: TritonServer) -> set[str]:
    """Return the segments of gateways that tritonserver has mapped, even if already unlinked."""
    maps = Path(f"/proc/{server.pid}/maps").read_text()
    return set(re.findall(r"/dev/shm/(samserve-[0-9a-f]+)", maps))


async def test_segments_of_a_killed_gateway_are_removed_and_those_of_others_kept(
    triton: TritonServer,
) -> None:
    killed, address = start_gateway(triton)
    try:
        async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
            stub = SegmentationServiceStub(channel)
            (embedding_id,) = await embedded(stub, 1)
            expected = await stub.Predict(predict_request(embedding_id, 50))
        of_killed = mapped(triton)
        async with gateway(triton) as (_, other):
            # Two gateways at once: each has its own memory.
            (same,) = await embedded(other, 1)
            assert (await other.Predict(predict_request(same, 50))).results == expected.results
            killed.send_signal(signal.SIGKILL)
            killed.wait()
            left_behind = {name for name in of_killed if (SHARED_MEMORY / name).exists()}
            assert left_behind < mapped(triton)
            assert len(left_behind) > 1
            async with gateway(triton) as (_, third):
                # The third gateway has removed the orphans, but nothing of the second one.
                assert not any((SHARED_MEMORY / name).exists() for name in left_behind)
                assert not mapped(triton) & left_behind
                assert not set(regions(triton)) & left_behind
                (again,) = await embedded(third, 1)
                for each, stub in ((same, other), (again, third)):
                    response = await stub.Predict(predict_request(each, 50))
                    assert response.results == expected.results
    finally:
        killed.kill()
        killed.communicate()

    assert mapped(triton) == set()


async def test_gateway_removes_its_segments_at_shutdown(triton: TritonServer) -> None:
    async with gateway(triton) as (_, stub):
        await embedded(stub, 2)
        names = mapped(triton)
        assert names

    assert mapped(triton) == set()
    assert not any((SHARED_MEMORY / name).exists() for name in names)


async def test_restart_of_triton_only_causes_unavailable_errors(triton: TritonServer) -> None:
    async with gateway(triton) as (service, stub):
        ids = await embedded(stub, 4)
        expected = {each: (await stub.Predict(predict_request(each, 50))).results for each in ids}
        failures: list[Failure] = []
        responses = 0
        over = asyncio.Event()

        async def caller(number: int) -> None:
            nonlocal responses
            while not over.is_set():
                each = ids[number % len(ids)]
                got = await outcome(stub.Predict(predict_request(each, 50), timeout=DEADLINE_S))
                if isinstance(got, Failure):
                    failures.append(got)
                    await asyncio.sleep(0.02)
                else:
                    assert got.results == expected[each]
                    responses += 1

        callers = [asyncio.create_task(caller(number)) for number in range(8)]
        await until(lambda: responses > 16)
        triton.kill()
        await until(lambda: len(failures) > 16)
        triton.start()
        after_start = responses
        await until(lambda: responses > after_start + 50)
        over.set()
        await asyncio.gather(*callers)
        assert engine_choice.run_count(service, "encoder") == 1 + len(ids)

    assert {failure.code for failure in failures} == {grpc.StatusCode.UNAVAILABLE}
    assert {failure.retry_after_s for failure in failures} == {1.0}
