"""Clients that leave, and deadlines that expire, take their requests out of Triton's queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import grpc
import pytest
from samserve.app import Running, running
from samserve.engines.fake import MODEL
from samserve.settings import load
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from harness.triton.server import TritonServer
from tests import pictures
from tests.conftest import FREE_PORTS, UNLIMITED
from tests.engines.drawing import DAWDLING_CLICK, ONE_SECOND, write_drawing_pair
from tests.engines.triton.opening import eventually
from tests.samples import total
from tests.triton import asking

QUEUED, LEAVING = 6, 4
DECODER, ENCODER = f"{MODEL.name}_decoder", f"{MODEL.name}_encoder"
SIDE = MODEL.image_size

Service = tuple[Running, SegmentationServiceStub]


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """The pair that draws, and dawdles over some clicks and pictures."""
    folder = tmp_path_factory.mktemp("cancellation")
    write_drawing_pair(folder / "models", steps=2 * ONE_SECOND)
    with TritonServer(folder / "models", log=folder / "log") as server:
        yield server


@pytest.fixture
async def service(triton: TritonServer) -> AsyncIterator[Service]:
    sections = {
        "server": FREE_PORTS,
        "engine": {"kind": "triton"},
        "triton": {"url": triton.grpc_address, "encoder_in_flight": 1},
        "store": {"capacity_bytes": 64 << 20},
    }
    async with (
        running(load(sections)) as service,
        grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel,
    ):
        yield service, SegmentationServiceStub(channel)


def request(embedding_id: str, *clicks: float) -> pb.PredictRequest:
    prompts = [pictures.click(x, 100) for x in clicks]
    return pb.PredictRequest(embedding_id=embedding_id, prompts=prompts)


def picture(seed: int, *, dawdles: bool = False) -> pb.Image:
    pixels = pictures.noise(SIDE, SIDE, seed)
    pixels[0, 0] = 255 if dawdles else 0
    size = pb.ImageSize(height=SIDE, width=SIDE)
    return pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_RGB, data=pixels.tobytes()))


async def settled(triton: TritonServer, model: str, expected: int) -> int:
    """Successes, once they have stayed as they are for a while; they lag behind the answers."""
    await eventually(lambda: successes(triton, model) >= expected)
    await asyncio.sleep(0.5)
    return successes(triton, model)


def successes(triton: TritonServer, model: str) -> int:
    return asking.metric(triton, "nv_inference_request_success", model)


def under_way(service: Service, network: str) -> int:
    return int(total(service[0].metrics.registry, "samserve_engine_running", network=network))


async def busy(service: Service, triton: TritonServer) -> tuple[str, int, list[Pending]]:
    """Embed a picture and keep both instances of the decoder at work on it for seconds.

    Gives the embedding's id, the successes of the decoder before, and the two calls.
    """
    _, stub = service
    embedded = await stub.Embed(pb.EmbedRequest(image=picture(0)))
    before = await settled(triton, DECODER, 1)
    # Of two shapes, so that they are not batched.
    long = [
        asyncio.ensure_future(result(stub.Predict(request(embedded.embedding.id, *clicks))))
        for clicks in ([DAWDLING_CLICK], [DAWDLING_CLICK, 1.0])
    ]
    await eventually(lambda: under_way(service, "decoder") == 2)
    await asyncio.sleep(0.2)
    return embedded.embedding.id, before, long


Pending = asyncio.Future[pb.PredictResponse]


async def result(call: grpc.aio.UnaryUnaryCall) -> pb.PredictResponse:
    return await call


async def test_clients_that_leave_take_their_requests_along(
    service: Service, triton: TritonServer
) -> None:
    _, stub = service
    embedding_id, before, long = await busy(service, triton)
    calls = [stub.Predict(request(embedding_id, 50.0 + x)) for x in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await eventually(lambda: under_way(service, "decoder") == 2 + QUEUED)
    await asyncio.sleep(0.1)
    assert not any(call.done() for call in [*long, *waiting])
    for call in calls[:LEAVING]:
        call.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await asyncio.gather(*long)

    assert [isinstance(each, asyncio.CancelledError) for each in outcomes] == [
        index < LEAVING for index in range(QUEUED)
    ]
    expected = before + 2 + QUEUED - LEAVING
    assert await settled(triton, DECODER, expected) == expected


async def test_requests_whose_deadline_has_expired_are_not_run(
    service: Service, triton: TritonServer
) -> None:
    _, stub = service
    embedding_id, before, long = await busy(service, triton)
    failures = await asyncio.gather(
        *(
            failure_of_any(stub.Predict(request(embedding_id, 50.0 + x), timeout=0.2))
            for x in range(LEAVING)
        )
    )
    assert not any(call.done() for call in long)
    await asyncio.gather(*long)

    assert failures == [grpc.StatusCode.DEADLINE_EXCEEDED] * LEAVING
    assert await settled(triton, DECODER, before + 2) == before + 2


async def failure_of_any(call: grpc.aio.UnaryUnaryCall) -> grpc.StatusCode:
    """The code; whether client or server has noticed the time first leaves other details."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code()


async def test_pictures_that_wait_for_the_encoder_are_dropped(
    service: Service, triton: TritonServer
) -> None:
    _, stub = service
    before = await settled(triton, ENCODER, 1)
    long = asyncio.ensure_future(
        result(stub.Embed(pb.EmbedRequest(image=picture(1, dawdles=True))))
    )
    await eventually(lambda: under_way(service, "encoder") == 1)
    calls = [stub.Embed(pb.EmbedRequest(image=picture(2 + seed))) for seed in range(QUEUED)]
    waiting = [asyncio.ensure_future(result(call)) for call in calls]
    await asyncio.sleep(0.3)
    assert not long.done()
    for call in calls[:LEAVING]:
        call.cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    await long

    assert sum(isinstance(each, pb.EmbedResponse) for each in outcomes) == QUEUED - LEAVING
    expected = before + 1 + QUEUED - LEAVING
    assert await settled(triton, ENCODER, expected) == expected
