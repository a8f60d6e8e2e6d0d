"""The stages of a call add up to its duration, and a delay is charged to its stage."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from samserve import images
from samserve.app import Running
from samserve.cache.local.cache import LocalCache
from samserve.calls import access_log
from samserve.calls.pipeline import Call
from samserve.context import RequestContext
from samserve.core import geometry
from samserve.engines.base import DecoderOutput, PromptBatch
from samserve.engines.fake import FakeEngine
from samserve.rpc import prompt_requests, responses
from samserve.rpc.methods import SERVICE
from samserve.scheduling.fair_semaphore import FairSemaphore
from samserve.scheduling.single_flight import SingleFlight
from samserve.security.authenticator import Authenticator
from samserve.segmentation import ids, predict
from samserve.telemetry.metrics.rpc import CallMetrics, CallRecord
from samserve.types import Embedding
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import finish
from tests.support.engines import wait_for_encodes
from tests.support.waiting import until

POINT_PROMPT = sample_images.point_prompt()
# Far longer than any stage; the test does not wait, only the clock is advanced.
DELAY_S = 1000.0
STREAMED = f"/{SERVICE}/"


class AdvancingClock:
    """The clock of calls; delayed functions advance it."""

    def __init__(self) -> None:
        self._ahead_s = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead_s

    def delay(self) -> None:
        self._ahead_s += DELAY_S


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> AdvancingClock:
    clock = AdvancingClock()
    monkeypatch.setattr(access_log, "_now", clock)
    return clock


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[CallRecord]:
    """The recorded calls."""
    written: list[CallRecord] = []
    record = CallMetrics.record

    def append(self: CallMetrics, call: CallRecord) -> None:
        written.append(call)
        record(self, call)

    monkeypatch.setattr(CallMetrics, "record", append)
    return written


@dataclass(frozen=True)
class Target:
    """A function of a module or class that is delayed before it runs."""

    owner: Any
    name: str


# A function of each stage; those of AutoMask are in another test.
TARGETS = {
    "admit": Target(Authenticator, "authenticate"),
    "prepare": Target(prompt_requests, "prompts"),
    "hash": Target(ids, "embedding_id"),
    "cache_get_local": Target(LocalCache, "lease"),
    "decode_image": Target(images, "read"),
    "resize": Target(geometry, "resize_image"),
    "encode": Target(FakeEngine, "encode"),
    "cache_put": Target(LocalCache, "publish"),
    "decode": Target(FakeEngine, "decode"),
    "postprocess": Target(predict._Postprocessing, "results"),
    "encode_masks": Target(responses, "prediction"),
}


def delayed(function: Callable[..., Any], delay: Callable[[], None]) -> Callable[..., Any]:
    """Delay a function, or the entry of the context manager that it returns."""
    if inspect.isasyncgenfunction(inspect.unwrap(function)):
        return delayed_entry(function, delay)

    def run(*args: Any, **kwargs: Any) -> Any:
        delay()
        return function(*args, **kwargs)

    return run


def delayed_entry(function: Callable[..., Any], delay: Callable[[], None]) -> Callable[..., Any]:
    @asynccontextmanager
    async def enter(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        delay()
        async with function(*args, **kwargs) as value:
            yield value

    return enter


@pytest.mark.parametrize("stage", TARGETS)
async def test_delay_is_charged_to_its_stage_only(
    stage: str, clock: AdvancingClock, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = TARGETS[stage]
    async with serving(settings_with(engine={"kind": "fake"})) as (_, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        monkeypatch.setattr(
            target.owner, target.name, delayed(getattr(target.owner, target.name), clock.delay)
        )
        records.clear()
        await stub.Embed(pb.EmbedRequest(image=sample_images.image(50, 60)))
        await stub.Predict(
            pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[POINT_PROMPT])
        )

    assert [call.code for call in records] == ["OK", "OK"]
    late = {name for call in records for name in late_stages(call)}
    # A cache miss is a stage of its own.
    assert late - {"cache_get_miss"} == {stage}
    assert (late == {stage}) or stage == "cache_get_local"


@asynccontextmanager
async def raw_call(service: Running, method: str) -> AsyncIterator[Any]:
    """Begin a call whose messages the test sends and reads."""
    async with grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel:
        yield channel.stream_stream(STREAMED + method)()


async def test_slow_request_is_charged_to_receive(
    clock: AdvancingClock, records: list[CallRecord]
) -> None:
    async with serving() as (service, _), raw_call(service, "ListModels") as call:
        registry = service.metrics.registry
        in_flight = {"grpc_method": "ListModels"}
        await until(lambda: registry.get_sample_value("samserve_inflight_requests", in_flight) == 1)
        clock.delay()
        await call.write(b"")
        await call.done_writing()
        await call.read()
        await call.code()

    (record,) = [each for each in records if each.method == "ListModels"]
    assert late_stages(record) == ["receive"]
    served = service.metrics.registry.get_sample_value(
        "samserve_call_seconds_sum", {"grpc_method": "ListModels", "model": ""}
    )
    # The objectives exclude the time that the client took.
    assert served is not None
    assert served < DELAY_S / 2


async def test_slow_reader_is_charged_to_send(
    clock: AdvancingClock, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = asyncio.Event()
    monkeypatch.setattr(Call, "send", delayed(Call.send, sending.set))
    request = pb.PredictRequest(prompts=[POINT_PROMPT] * 32, include_low_res_logits=True)
    async with serving() as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        request.embedding_id = embedded.embedding.id
        sending.clear()
        async with raw_call(service, "Predict") as call:
            await call.write(request.SerializeToString())
            await call.done_writing()
            await sending.wait()
            clock.delay()
            await call.read()
            await call.code()

    record = records[-1]
    assert record.facts.sent_bytes > 8 << 20
    assert late_stages(record) == ["send"]


class SequentialEngine(FakeEngine):
    """Decodes one at a time, while ``go`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.slot = FairSemaphore(1)
        self.go = asyncio.Event()
        self.go.set()

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        async with self.slot.acquire(context):
            await self.go.wait()
            return await super().decode(model, embedding, prompts, context)


async def test_wait_for_the_engine_is_charged_to_queue(
    clock: AdvancingClock, records: list[CallRecord]
) -> None:
    engine = SequentialEngine()
    async with serving(engine=engine) as (_, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image()))
        engine.go.clear()
        records.clear()
        request = pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[POINT_PROMPT])
        calls = [asyncio.create_task(finish(stub.Predict(request))) for _ in range(2)]
        await until(lambda: engine.slot.waiting == 1)
        clock.delay()
        engine.go.set()
        await asyncio.gather(*calls)

    assert sorted(name for call in records for name in late_stages(call)) == ["decode", "queue"]


def late_stages(call: CallRecord) -> list[str]:
    return [name for name, took in call.stages.items() if took > DELAY_S / 2]


async def test_wait_for_another_encode_is_charged_to_join(
    clock: AdvancingClock, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    engine = FakeEngine()
    joined: list[None] = []
    join = delayed(SingleFlight.join, lambda: joined.append(None))
    monkeypatch.setattr(SingleFlight, "join", join)
    async with serving(engine=engine) as (_, stub):
        engine.hold(go)
        request = pb.EmbedRequest(image=sample_images.image(40, 50))
        first = asyncio.create_task(finish(stub.Embed(request)))
        await wait_for_encodes(engine, 1)
        second = asyncio.create_task(finish(stub.Embed(request)))
        await until(lambda: len(joined) == 2)
        clock.delay()
        go.set()
        await asyncio.gather(first, second)

    assert sorted(name for call in records for name in late_stages(call)) == ["encode", "join"]
    assert sorted(call.facts.cache for call in records) == ["joined", "miss"]


async def test_stages_of_a_call_add_up_to_its_duration(
    records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    # CPU time of this process, which is independent of other processes.
    monkeypatch.setattr(access_log, "_now", time.process_time)
    methods = {"Embed", "Predict", "AutoMask"}
    complete: set[str] = set()
    async with serving() as (_, stub):
        # In any single call the interpreter may do other work: one complete call is enough.
        for size in range(40, 140):
            await call_each(stub, size)
            complete |= {call.method for call in records if adds_up(call)}
            if complete == methods:
                break

    assert {call.method for call in records} == methods
    assert complete == methods


async def call_each(stub: SegmentationServiceStub, size: int) -> None:
    embedded = await stub.Embed(pb.EmbedRequest(image=sample_images.image(size, 64)))
    of = {"embedding_id": embedded.embedding.id}
    await stub.Predict(pb.PredictRequest(**of, prompts=[POINT_PROMPT]))
    options = pb.AutoMaskOptions(points_per_side=4)
    async for _ in stub.AutoMask(pb.AutoMaskRequest(**of, options=options)):
        pass


def adds_up(call: CallRecord) -> bool:
    """Return whether the stages add up to the duration, and ``other`` is a small part of it."""
    difference = abs(sum(call.stages.values()) - call.seconds)
    return difference <= 0.0005 and call.stages["other"] <= max(0.1 * call.seconds, 0.001)
