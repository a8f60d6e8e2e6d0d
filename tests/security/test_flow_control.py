"""Clients that never accept a response do not use resources of other clients."""

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

from tests import sample_images
from tests.conftest import UNLIMITED, settings_with, stub_of
from tests.metric_values import total
from tests.security import http2
from tests.support.waiting import TIMEOUT_S, until

PREDICT = "/samserve.v1.SegmentationService/Predict"
REQUEST = pb.PredictRequest(
    image=pb.Image(encoded=sample_images.png(40, 60)), prompts=[sample_images.point_prompt(5, 5)]
)
# No other timeout releases a slot while a test runs.
NO_TIMEOUTS = {"send_timeout_s": 600, "receive_timeout_s": 600, "grace_period_s": 0}


@asynccontextmanager
async def blocked_call(
    address: str, path: str, request: Message
) -> AsyncIterator[asyncio.StreamReader]:
    """Open a call whose client accepts no byte of the response (flow control window of 0)."""
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
        return await admitted(stub.Predict(REQUEST, timeout=TIMEOUT_S))


async def checks(address: str) -> bool:
    async with grpc.aio.insecure_channel(address, options=UNLIMITED) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        return await admitted(check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S))


async def admitted(call: Awaitable[object]) -> bool:
    """Whether a call got a slot."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return False
    return True


async def test_unread_responses_release_their_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.05)
    settings = settings_with(
        server=NO_TIMEOUTS,
        deadlines={"predict_s": 600},
        admission={"max_concurrent_predict": 3, "max_slow_responses": 8},
    )
    async with running(settings) as service, AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(blocked_call(service.address, PREDICT, REQUEST))
        # All three are admitted, and wait for their clients.
        registry = service.metrics.registry
        await until(lambda: total(registry, "grpc_server_started_total") == 3)
        await until(lambda: predicts(service.address))
        # They do not count as in flight, although they have not ended.
        await until(lambda: total(registry, "samserve_inflight_requests") == 0)
        started = total(registry, "grpc_server_started_total")
        assert started - total(registry, "grpc_server_handled_total") == 3


async def test_an_unread_response_ends_after_the_send_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(slow_clients, "SLOW_AFTER_S", 0.01)
    settings = settings_with(
        server={"send_timeout_s": 0.1, "grace_period_s": 0}, deadlines={"predict_s": 600}
    )
    async with running(settings) as service, blocked_call(service.address, PREDICT, REQUEST):
        labels = {"grpc_method": "Predict", "grpc_code": "DEADLINE_EXCEEDED"}
        registry = service.metrics.registry
        await until(lambda: total(registry, "grpc_server_handled_total", **labels) == 1)


async def test_unread_health_responses_end_after_the_write_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(public_services, "MAX_CALLS", 4)
    monkeypatch.setattr(public_services, "WRITE_TIMEOUT_S", 0.1)
    path, request = "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest()
    async with running(settings_with(server=NO_TIMEOUTS)) as service, AsyncExitStack() as stack:
        for _ in range(8):
            reader = await stack.enter_async_context(blocked_call(service.address, path, request))
            # The call is admitted or rejected as soon as there are headers.
            while (got := await http2.read_frame(reader)) is not None:
                if got.kind == http2.HEADERS:
                    break
        # All clients are still connected.
        await until(lambda: checks(service.address))
