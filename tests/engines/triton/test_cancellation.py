"""Cancelled calls and expired deadlines remove their requests from Triton's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import grpc
import pytest
from samserve.engines.fake import MODEL
from samserve.v1 import samserve_pb2 as pb

from harness.triton.server import TritonServer
from tests import sample_images
from tests.engines.drawing import HELD_X, mark_held
from tests.engines.triton import services
from tests.engines.triton.services import Service, gateway
from tests.metric_values import total
from tests.support.waiting import until
from tests.triton import queries
from tests.triton.servers import Holding

QUEUED, CANCELLED = 6, 4
DECODER = f"{MODEL.name}_decoder"
SIDE = MODEL.image_size

Pending = asyncio.Future[pb.PredictResponse]


@pytest.fixture
async def service(holding: Holding) -> AsyncIterator[Service]:
    async with gateway(holding.server.grpc_address, max_concurrent_encoder_requests=1) as service:
        yield service


def request(embedding_id: str, *xs: float) -> pb.PredictRequest:
    prompts = [sample_images.point_prompt(x, 100) for x in xs]
    return pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)


def raw_image(seed: int, *, held: bool = False) -> pb.Image:
    pixels = sample_images.noise(SIDE, SIDE, seed)
    pixels[0, 0] = 0
    if held:
        mark_held(pixels)
    size = pb.ImageSize(height=SIDE, width=SIDE)
    return pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=pixels.tobytes()))


def cancellations(triton: TritonServer) -> int:
    """Count the cancellations in Triton's log; its metrics show them only later."""
    assert triton.log is not None
    return triton.log.read_text().count("Issuing cancellation")


def runs_in_flight(service: Service, network: str) -> int:
    return services.runs_in_flight(service[0].metrics, network)


def encodes(service: Service) -> int:
    """Count the runs of the encoder that have ended, with any outcome."""
    registry = service[0].metrics.registry
    return int(total(registry, "samserve_engine_runs_total", network="encoder"))


def waiting_for_encoder(service: Service) -> int:
    return int(total(service[0].metrics.registry, "samserve_queue_depth", queue="encoder"))


async def embedded(service: Service) -> str:
    response = await service[1].Embed(pb.EmbedRequest(image=raw_image(0)))
    return str(response.embedding.id)


async def busy(service: Service, holding: Holding, embedding_id: str) -> tuple[int, list[Pending]]:
    """Occupy both instances of the decoder; return its previous successes, and the held calls.

    That number is exact: an instance has reported a run when it begins the next one.
    """
    _, stub = service
    # Of two shapes, so that they are not batched.
    long = [
        asyncio.ensure_future(result(stub.Predict(request(embedding_id, *xs))))
        for xs in ([HELD_X], [HELD_X, 1.0])
    ]
    await holding.hold.begun(2)
    return queries.metric(holding.server, "nv_inference_request_success", DECODER), long


async def successes(service: Service, holding: Holding, embedding_id: str) -> int:
    """Count the decoder's successes, including all earlier requests."""
    count, long = await busy(service, holding, embedding_id)
    holding.hold.release()
    await asyncio.gather(*long)
    return count


async def result(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse:
    return await call


async def test_cancelled_calls_are_removed_from_the_queue_of_triton(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    triton = holding.server
    embedding_id = await embedded(service)
    before, long = await busy(service, holding, embedding_id)
    calls = [stub.Predict(request(embedding_id, 50.0 + x)) for x in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await until(partial(queries.is_queued, triton, DECODER, QUEUED))
    assert runs_in_flight(service, "decoder") == 2 + QUEUED
    assert not any(call.done() for call in [*long, *waiting])
    with queries.verbose(triton):
        noticed = cancellations(triton)
        for call in calls[:CANCELLED]:
            call.cancel()
        await until(lambda: cancellations(triton) == noticed + CANCELLED)
    holding.hold.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*long)

    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
        index < CANCELLED for index in range(QUEUED)
    ]
    expected = before + 2 + QUEUED - CANCELLED
    assert await successes(service, holding, embedding_id) == expected


async def test_requests_with_an_expired_deadline_are_not_run(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    embedding_id = await embedded(service)
    before, long = await busy(service, holding, embedding_id)
    with queries.verbose(holding.server):
        noticed = cancellations(holding.server)
        failures = await asyncio.gather(
            *(
                failure_of_any(stub.Predict(request(embedding_id, 50.0 + x), timeout=0.2))
                for x in range(CANCELLED)
            )
        )
        # Before the runs end, for which the requests wait.
        await until(lambda: cancellations(holding.server) == noticed + CANCELLED)
    assert not any(call.done() for call in long)
    holding.hold.release()
    await asyncio.gather(*long)

    assert failures == [grpc.StatusCode.DEADLINE_EXCEEDED] * CANCELLED
    assert await successes(service, holding, embedding_id) == before + 2


async def failure_of_any(call: grpc.aio.UnaryUnaryCall) -> grpc.StatusCode:
    """Return the status code; the details depend on whether client or server timed out first."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_cancelled_embed_calls_leave_the_queue_of_the_encoder(
    service: Service, holding: Holding
) -> None:
    _, stub = service
    before = encodes(service)
    long = asyncio.ensure_future(result(stub.Embed(pb.EmbedRequest(image=raw_image(1, held=True)))))
    await holding.hold.begun()
    calls = [stub.Embed(pb.EmbedRequest(image=raw_image(2 + seed))) for seed in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await until(lambda: waiting_for_encoder(service) == QUEUED)
    assert runs_in_flight(service, "encoder") == 1
    assert not long.done()
    for call in calls[:CANCELLED]:
        call.cancel()
    await until(lambda: waiting_for_encoder(service) == QUEUED - CANCELLED)
    holding.hold.release()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await long

    assert sum(isinstance(each, pb.EmbedResponse) for each in outcomes) == QUEUED - CANCELLED
    assert encodes(service) == before + 1 + QUEUED - CANCELLED
