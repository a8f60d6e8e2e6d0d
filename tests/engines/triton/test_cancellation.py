"""Clients that leave, and deadlines that expire, take their requests out of Triton's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from samserve.app import Running, default_repository, running
from samserve.settings import load
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import chosen, photos, pictures
from tests.conftest import FREE_PORTS, UNLIMITED
from tests.engines.triton.opening import eventually
from tests.rpc.errors import failure_of
from tests.triton import asking

# Two runs of so many prompts keep both instances of the decoder busy for about a second.
LONG = 64
QUEUED, LEAVING = 6, 4
DECODER, ENCODER = "sam_tiny_decoder", "sam_tiny_encoder"
SERVER = default_repository()

Service = tuple[Running, SegmentationServiceStub]


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    sections = {
        "server": FREE_PORTS,
        "engine": {"kind": "triton", "prompts_per_run": LONG},
        "triton": {"url": chosen.triton_server(SERVER).grpc_address, "encoder_in_flight": 1},
        "store": {"capacity_bytes": 64 << 20},
    }
    async with (
        running(load(sections)) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, SegmentationServiceStub(channel)


def request(embedding_id: str, count: int = 1) -> pb.PredictRequest:
    prompts = [pictures.click(20 + 5 * index, 100) for index in range(count)]
    return pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)


def successes(model: str) -> int:
    return asking.metric(chosen.triton_server(SERVER), "nv_inference_request_success", model)


async def settled(model: str, expected: int) -> int:
    """Successes, once they have stayed as they are for a while; they lag behind the answers."""
    await eventually(lambda: successes(model) >= expected)
    await asyncio.sleep(0.5)
    return successes(model)


async def busy(service: Service) -> tuple[str, list[asyncio.Future[pb.PredictResponse]]]:
    """Embed a photograph and keep both instances of the decoder at work on it."""
    running, stub = service
    embedded = await stub.Embed(pb.EmbedRequest(image=pb.Image(encoded=photos.files()[0])))
    under_way = running.metrics.engine_running.labels("decoder")._value
    long = [
        asyncio.ensure_future(result(stub.Predict(request(embedded.embedding.id, LONG))))
        for _ in range(2)
    ]
    await eventually(lambda: under_way.get() == 2)
    await asyncio.sleep(0.1)
    return embedded.embedding.id, long


async def result(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse:
    return await call


async def test_clients_that_leave_take_their_requests_along(service: Service) -> None:
    _, stub = service
    embedding_id, long = await busy(service)
    before = successes(DECODER)
    calls = [stub.Predict(request(embedding_id)) for _ in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await asyncio.sleep(0.2)
    assert not any(call.done() for call in [*long, *waiting])
    for call in calls[:LEAVING]:
        call.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*long)

    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
        index < LEAVING for index in range(QUEUED)
    ]
    assert await settled(DECODER, before + 2 + QUEUED - LEAVING) == before + 2 + QUEUED - LEAVING


async def test_requests_whose_deadline_has_expired_are_not_run(service: Service) -> None:
    _, stub = service
    embedding_id, long = await busy(service)
    before = successes(DECODER)
    late = [failure_of(stub.Predict(request(embedding_id), timeout=0.2)) for _ in range(LEAVING)]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Predict(request(embedding_id), timeout=0.2)
    for each in late:
        each.close()
    await asyncio.gather(*long)

    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert await settled(DECODER, before + 2) == before + 2


async def test_pictures_that_wait_for_the_encoder_are_dropped(service: Service) -> None:
    running, stub = service
    before = successes(ENCODER)
    calls = [stub.Embed(pb.EmbedRequest(image=pictures.image(600, 800, seed))) for seed in range(5)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    under_way = running.metrics.engine_running.labels("encoder")._value
    await eventually(lambda: under_way.get() == 1)
    # All are decoded and resized by now, or will find their callers gone.
    await asyncio.sleep(0.05)
    first = asyncio.create_task(first_done(waiting))
    for call in calls[1:]:
        call.cancel()
    await first
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    answered = sum(isinstance(each, pb.EmbedResponse) for each in outcomes)
    ran = await settled(ENCODER, before + 1) - before

    assert answered >= 1
    assert ran <= 2


async def first_done(waiting: list[asyncio.Future[pb.PredictResponse]]) -> None:
    await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
