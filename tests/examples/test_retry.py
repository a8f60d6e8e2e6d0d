"""`examples/retry`: a channel for stubs of another program, with retries and keepalive."""

from __future__ import annotations

import asyncio
import json
import runpy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from samserve.client.channel import open_channel, service_config
from samserve.context import RequestContext
from samserve.engines.base import EncoderInput
from samserve.engines.fake import FakeEngine
from samserve.errors import EngineUnavailable
from samserve.memory.slot import Slot
from samserve.security.principal import WARM_UP
from samserve.settings import Settings
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests.client import scripted
from tests.client.scripted import ScriptedServicer
from tests.conftest import running, settings_with
from tests.support.engines import PausedEngine
from tests.support.tcp import relay
from tests.support.waiting import TIMEOUT_S

EXAMPLE = Path(__file__).parents[2] / "examples" / "retry"
CONFIG = json.loads((EXAMPLE / "service_config.json").read_text())
CHANNEL = runpy.run_path(str(EXAMPLE / "channel.py"))
OPTIONS = CHANNEL["OPTIONS"]
Stub = samserve_pb2_grpc.SegmentationServiceStub
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
CALLS = {
    "Embed": pb.EmbedRequest(),
    "Predict": pb.PredictRequest(),
    "DeleteEmbedding": pb.DeleteEmbeddingRequest(),
    "ListModels": pb.ListModelsRequest(),
}


class FailingEngine(FakeEngine):
    """Is unavailable for the first encodes."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures

    async def encode(
        self, model: str, image: EncoderInput, into: Slot, context: RequestContext
    ) -> None:
        if self.failures and context.principal is not WARM_UP:
            self.failures -= 1
            raise EngineUnavailable("as scripted")
        await super().encode(model, image, into, context)


def without(*names: str) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in OPTIONS if name not in names]


def image(side: int) -> pb.Image:
    size = pb.ImageSize(height=side, width=side)
    return pb.Image(raw=pb.RawImage(size=size, layout=pb.RAW_LAYOUT_GRAY, data=bytes(side**2)))


@asynccontextmanager
async def stub_of(address: str, options: list[tuple[str, Any]] = OPTIONS) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(address, options=options) as channel:
        yield Stub(channel)


def test_policy_is_that_of_the_python_client() -> None:
    client = json.loads(service_config())

    (policy,), (other,) = CONFIG["methodConfig"], client["methodConfig"]
    assert policy["retryPolicy"] == other["retryPolicy"]
    assert {name["service"] for name in other["name"]} == {policy["name"][0]["service"]}
    assert "method" not in policy["name"][0]
    assert CONFIG["loadBalancingConfig"] == client["loadBalancingConfig"]


@pytest.mark.parametrize("method", CALLS)
async def test_unavailable_is_retried(method: str) -> None:
    servicer = ScriptedServicer(UNAVAILABLE, UNAVAILABLE)
    async with scripted.serving(servicer) as address, stub_of(address) as stub:
        await getattr(stub, method)(CALLS[method])

    assert len(servicer.calls) == 3


async def test_blocking_channel_retries() -> None:
    servicer = ScriptedServicer(UNAVAILABLE)

    def call(address: str) -> list[Any]:
        with CHANNEL["open_channel"](address) as channel:
            return list(Stub(channel).AutoMask(pb.AutoMaskRequest()))

    async with scripted.serving(servicer) as address:
        messages = await asyncio.to_thread(call, address)

    assert [each.WhichOneof("event") for each in messages] == ["summary"]
    assert len(servicer.calls) == 2


@pytest.mark.parametrize("code", ["RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "INTERNAL"])
async def test_other_codes_are_not_retried(code: str) -> None:
    servicer = ScriptedServicer(grpc.StatusCode[code])
    async with scripted.serving(servicer) as address, stub_of(address) as stub:
        with pytest.raises(grpc.aio.AioRpcError):
            await stub.ListModels(pb.ListModelsRequest())

    assert len(servicer.calls) == 1


async def test_gateway_without_engine_is_retried_with_the_image() -> None:
    engine = FailingEngine(failures=2)
    async with running(settings_with(), engine=engine) as service, stub_of(service.address) as stub:
        response = await stub.Embed(pb.EmbedRequest(image=image(1000)))

    assert engine.failures == 0
    assert response.embedding.image_size.height == 1000


async def test_large_image_needs_the_buffer_size() -> None:
    engine = FailingEngine(failures=2)
    options = without("grpc.per_rpc_retry_buffer_size")
    async with (
        running(settings_with(), engine=engine) as service,
        stub_of(service.address, options) as stub,
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Embed(pb.EmbedRequest(image=image(1000)))

    assert (caught.value.code(), engine.failures) == (UNAVAILABLE, 1)


def test_keepalive_is_less_frequent_than_the_server_allows() -> None:
    assert dict(OPTIONS)["grpc.keepalive_time_ms"] >= 2e3 * Settings().server.min_ping_interval_s


def test_options_are_those_of_the_python_client(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: dict[str, Any] = {}
    monkeypatch.setattr(grpc.aio, "insecure_channel", lambda _, options: opened.update(options))

    open_channel("localhost:1", None)

    assert {name: opened[name] for name in dict(without("grpc.service_config"))} == dict(
        without("grpc.service_config")
    )


@pytest.mark.slow
async def test_keepalive_holds_during_a_long_call_and_repeats_it_if_the_connection_is_lost() -> (
    None
):
    """In a 50th of the time."""
    quick = {"grpc.keepalive_time_ms": 1200, "grpc.http2.ping_timeout_ms": 1000}
    options = [*without(*quick), *quick.items()]
    engine, silent = PausedEngine(), asyncio.Event()
    settings = settings_with(server={"min_ping_interval_s": 0.2})
    async with running(settings, engine=engine) as service:
        port = int(service.address.rpartition(":")[2])
        async with (
            relay(port, silent=silent) as relayed,
            stub_of(f"127.0.0.1:{relayed}", options) as stub,
        ):
            call = asyncio.ensure_future(stub.Embed(pb.EmbedRequest(image=image(8))))
            # Three pings: by default, gRPC sends two, and the next after a minute.
            await asyncio.wait({call}, timeout=4.5)
            assert not call.done()
            silent.set()
            engine.go.set()
            response = await asyncio.wait_for(call, TIMEOUT_S / 2)

    assert response.embedding.cached
