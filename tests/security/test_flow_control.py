"""Clients that never let an answer through: they hold nothing that others need."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from samserve.app import running
from samserve.calls import slow_clients
from samserve.rpc import public_services
from samserve.v1 import samserve_pb2 as pb

from tests import pictures
from tests.conftest import UNLIMITED, settings_with, stub_of
from tests.samples import total
from tests.security import http2
from tests.support.waiting import BOUND_S, until

PREDICT = "/samserve.v1.SegmentationService/Predict"
PICTURE = pb.PredictRequest(
    image=pb.Image(encoded=pictures.png(40, 60)), prompts=[pictures.click(5, 5)]
)
# Nothing gives a place back while a test runs, unless it does what it is tested for.
PATIENT = {"send_s": 600, "receive_s": 600, "grace_s": 0}


@asynccontextmanager
async def shut(address: str, path: str, request: Message) -> AsyncIterator[asyncio.StreamReader]:
    """A call whose client lets no byte of the answer through."""
    reader, writer = await http2.connected(address, b"")
    data = request.SerializeToString()
    message = b"\0" + len(data).to_bytes(4, "big") + data
    await http2.greet(reader, writer, {http2.INITIAL_WINDOW_SIZE: 0})
    writer.write(http2.call_headers(path, "localhost") + http2.frame(http2.DATA, 1, 1, message))
    try:
        yield reader
    finally:
        writer.close()


async def predicts(address: str) -> bool:
    async with stub_of(address) as stub:
        return await answered(stub.Predict(PICTURE, timeout=BOUND_S))


async def checks(address: str) -> bool:
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return await answered(check(health_pb2.HealthCheckRequest(), timeout=BOUND_S))


async def answered(call: Awaitable[object]) -> bool:
    """Whether there was a place for a call."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def test_answers_that_are_not_taken_hold_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "PROMPT_S", 0.05)
    settings = settings_with(
        server=PATIENT, deadlines={"predict_s": 600}, admission={"predict": 3, "slow_answers": 8}
    )
    async with running(settings) as service, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(shut(service.address, PREDICT, PICTURE))
        # All three are in, and wait for their clients.
        registry = service.metrics.registry
        await until(lambda: total(registry, "grpc_server_started_total") == 3)
        await until(lambda: predicts(service.address))
        # Nor are they counted as if they did, though they have not ended.
        await until(lambda: total(registry, "samserve_inflight_requests") == 0)
        started = total(registry, "grpc_server_started_total")
        assert started - total(registry, "grpc_server_handled_total") == 3


async def test_an_answer_that_is_never_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "PROMPT_S", 0.01)
    settings = settings_with(server={"send_s": 0.1, "grace_s": 0}, deadlines={"predict_s": 600})
    async with running(settings) as service, shut(service.address, PREDICT, PICTURE):
        labels = {"grpc_method": "Predict", "grpc_code": "DEADLINE_EXCEEDED"}
        registry = service.metrics.registry
        await until(lambda: total(registry, "grpc_server_handled_total", **labels) == 1)


async def test_health_that_is_not_taken_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(public_services, "MAX_CALLS", 4)
    monkeypatch.setattr(public_services, "WRITE_S", 0.1)
    path, request = "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()
    async with running(settings_with(server=PATIENT)) as service, AsyncExitStack() as stack:
        for _ in range(8):
            reader = await stack.enter_async_context(shut(service.address, path, request))
            # It is in, or refused, as soon as there are headers.
            while (got := await http2.read_frame(reader)) is not None:
                if got.kind == http2.HEADERS:
                    break
        # While all of them are still there.
        await until(lambda: checks(service.address))
