"""Clients that leave, and deadlines that expire, take their requests out of Triton's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
from samserve.engines.fake import MODEL
from samserve.v1 import samserve_pb2 as pb

from harness.triton.server import TritonServer
from tests import pictures
from tests.engines.drawing import HELD_CLICK, held_pixels
from tests.engines.triton import opening
from tests.engines.triton.opening import Service, gateway
from tests.samples import total
from tests.support.waiting import until
from tests.triton import asking
from tests.triton.servers import Holding

QUEUED, LEAVING = 6, 4
DECODER = f"{MODEL.name}_decoder"
SIDE = MODEL.image_size

Pending = asyncio.Future[pb.PredictResponse]


@pytest.fixture
async def service(holding: Holding) -> AsyncIterator[Service]:
    async with gateway(holding.server.grpc_address, encoder_in_flight=1) as service:
        yield service


def request(embedding_id: str, *clicks: float) -> pb.PredictRequest:
    prompts = [pictures.click(x, 100) for x in clicks]
    return pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)


def picture(seed: int, *, held: bool = False) -> pb.Image:
    pixels = pictures.noise(SIDE, SIDE, seed)
    pixels[0, 0] = 0
    if held:
        held_pixels(pixels)
    size = pb.ImageSize(height=SIDE, width=SIDE)
    return pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=pixels.tobytes()))


def cancellations(triton: TritonServer) -> int:
    """Count the cancellations that Triton has noticed; no metric says so before the queue ends."""
    assert triton.log is not None
    return triton.log.read_text().count("Issuing cancellation")


def under_way(service: Service, network: str) -> int:
    return opening.under_way(service[0].metrics, network)


def encodes(service: Service) -> int:
    """Count the runs of the encoder that have ended, however they did."""
    registry = service[0].metrics.registry
    return int(total(registry, "samserve_engine_runs_total", network="encoder"))


def waiting_for_encoder(service: Service) -> int:
    return int(total(service[0].metrics.registry, "samserve_queue_waiting", queue="encoder"))


async def embedded(service: Service) -> str:
    answer = await service[1].Embed(pb.EmbedRequest(image=picture(0)))
    return str(answer.embedding.id)


async def busy(service: Service, holding: Holding, embedding_id: str) -> tuple[int, list[Pending]]:
    """Keep both instances of the decoder at work; give the calls, and its successes before.

    That number is exact: an instance has reported a run when it begins the next one.
    """
    _, stub = service
    # Of two shapes, so that they are not batched.
    long = [
        asyncio.ensure_future(result(stub.Predict(request(embedding_id, *clicks))))
        for clicks in ([HELD_CLICK], [HELD_CLICK, 1.0])
    ]
    await holding.hold.begun(2)
    return asking.metric(holding.server, "nv_inference_request_success", DECODER), long


async def successes(service: Service, holding: Holding, embedding_id: str) -> int:
    """Count the decoder's successes, all that was asked for before included."""
    count, long = await busy(service, holding, embedding_id)
    holding.hold.release()
    await asyncio.gather(*long)
    return count


async def result(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse:
    return await call


async def test_clients_that_leave_take_their_requests_along(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    triton = holding.server
    embedding_id = await embedded(service)
    before, long = await busy(service, holding, embedding_id)
    calls = [stub.Predict(request(embedding_id, 50.0 + x)) for x in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await until(partial(asking.is_queued, triton, DECODER, QUEUED))
    assert under_way(service, "decoder") == 2 + QUEUED
    assert not any(call.done() for call in [*long, *waiting])
    with asking.verbose(triton):
        noticed = cancellations(triton)
        for call in calls[:LEAVING]:
            call.cancel()
        await until(lambda: cancellations(triton) == noticed + LEAVING)
    holding.hold.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*long)

    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
        index < LEAVING for index in range(QUEUED)
    ]
    expected = before + 2 + QUEUED - LEAVING
    assert await successes(service, holding, embedding_id) == expected


async def test_requests_whose_deadline_has_expired_are_not_run(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    embedding_id = await embedded(service)
    before, long = await busy(service, holding, embedding_id)
    failures = await asyncio.gather(
        *(
            failure_of_any(stub.Predict(request(embedding_id, 50.0 + x), timeout=0.2))
            for x in range(LEAVING)
        )
    )
    assert not any(call.done() for call in long)
    holding.hold.release()
    await asyncio.gather(*long)

    assert failures == [grpc.StatusCode.DEADLINE_EXCEEDED] * LEAVING
    assert await successes(service, holding, embedding_id) == before + 2


async def failure_of_any(call: grpc.aio.UnaryUnaryCall) -> grpc.StatusCode:
    """The code; whether client or server has noticed the time first leaves other details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_pictures_that_wait_for_the_encoder_are_dropped(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    before = encodes(service)
    long = asyncio.ensure_future(result(stub.Embed(pb.EmbedRequest(image=picture(1, held=True)))))
    await holding.hold.begun()
    calls = [stub.Embed(pb.EmbedRequest(image=picture(2 + seed))) for seed in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await until(lambda: waiting_for_encoder(service) == QUEUED)
    assert under_way(service, "encoder") == 1
    assert not long.done()
    for call in calls[:LEAVING]:
        call.cancel()
    await until(lambda: waiting_for_encoder(service) == QUEUED - LEAVING)
    holding.hold.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await long

    assert sum(isinstance(each, pb.EmbedResponse) for each in outcomes) == QUEUED - LEAVING
    assert encodes(service) == before + 1 + QUEUED - LEAVING
