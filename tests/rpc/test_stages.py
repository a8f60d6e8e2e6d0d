"""Where the time of a call goes: its stages add up, and a delay shows where it happened."""

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
from samserve.stores.local.store import MemoryStore
from samserve.telemetry.metrics.rpc import CallMetrics, CallRecord
from samserve.types import Embedding
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import pictures
from tests.conftest import UNLIMITED, serving, settings_with
from tests.rpc.errors import finish
from tests.support.engines import encodes_begun
from tests.support.waiting import until

CLICK = pictures.click()
# Far more than anything takes by itself; nobody waits for it, only the clock is moved.
DELAY_S = 1000.0
STREAMED = f"/{SERVICE}/"


class MovedTime:
    """The clock of calls; what happens to be delayed moves it."""

    def __init__(self) -> None:
        self._moved = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._moved

    def delay(self) -> None:
        self._moved += DELAY_S


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> MovedTime:
    moved = MovedTime()
    monkeypatch.setattr(access_log, "_now", moved)
    return moved


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> list[CallRecord]:
    """Calls as they were written down."""
    written: list[CallRecord] = []
    record = CallMetrics.record

    def note(self: CallMetrics, call: CallRecord) -> None:
        written.append(call)
        record(self, call)

    monkeypatch.setattr(CallMetrics, "record", note)
    return written


@dataclass(frozen=True)
class Place:
    """Where a delay is put: a function of a module or class, before it runs."""

    owner: Any
    name: str


# What each stage consists of; AutoMask's own are in another test.
PLACES = {
    "admit": Place(Authenticator, "authenticate"),
    "prepare": Place(prompt_requests, "prompts"),
    "hash": Place(ids, "embedding_id"),
    "cache_get_memory": Place(MemoryStore, "lease"),
    "decode_image": Place(images, "decode"),
    "resize": Place(geometry, "resize_image"),
    "encode": Place(FakeEngine, "encode"),
    "cache_put": Place(MemoryStore, "publish"),
    "decode": Place(FakeEngine, "decode"),
    "postprocess": Place(predict._Postprocessing, "candidates"),
    "encode_masks": Place(responses, "prediction"),
}


def delayed(function: Callable[..., Any], delay: Callable[[], None]) -> Callable[..., Any]:
    """Delay a function, or the entry of a context manager that it makes."""
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


@pytest.mark.parametrize("stage", PLACES)
async def test_a_delay_shows_in_its_stage_and_in_no_other(
    stage: str, moved: MovedTime, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = PLACES[stage]
    async with serving(settings_with(engine={"kind": "fake"})) as (_, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        monkeypatch.setattr(
            place.owner, place.name, delayed(getattr(place.owner, place.name), moved.delay)
        )
        records.clear()
        await stub.Embed(pb.EmbedRequest(image=pictures.image(50, 60)))
        await stub.Predict(pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[CLICK]))

    assert [call.code for call in records] == ["OK", "OK"]
    late = {name for call in records for name in late_stages(call)}
    # A lookup that finds nothing is a stage of its own.
    assert late - {"cache_get_miss"} == {stage}
    assert (late == {stage}) or stage == "cache_get_memory"


@asynccontextmanager
async def raw_call(service: Running, method: str) -> AsyncIterator[Any]:
    """Make a call whose messages are sent and read by hand."""
    async with grpc.aio.insecure_channel(service.address, options=UNLIMITED) as channel:
        yield channel.stream_stream(STREAMED + method)()


async def test_a_client_that_sends_late_is_seen_in_receive(
    moved: MovedTime, records: list[CallRecord]
) -> None:
    async with serving() as (service, _), raw_call(service, "ListModels") as call:
        registry = service.metrics.registry
        in_flight = {"grpc_method": "ListModels"}
        await until(lambda: registry.get_sample_value("samserve_inflight_requests", in_flight) == 1)
        moved.delay()
        await call.write(b"")
        await call.done_writing()
        await call.read()
        await call.code()

    (record,) = [each for each in records if each.method == "ListModels"]
    assert late_stages(record) == ["receive"]
    served = service.metrics.registry.get_sample_value(
        "samserve_call_seconds_sum", {"grpc_method": "ListModels", "model": ""}
    )
    # Objectives are about what the server took.
    assert served is not None
    assert served < DELAY_S / 2


async def test_a_client_that_reads_late_is_seen_in_send(
    moved: MovedTime, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    sending = asyncio.Event()
    monkeypatch.setattr(Call, "send", delayed(Call.send, sending.set))
    wish = pb.PredictRequest(prompts=[CLICK] * 32, include_low_res_logits=True)
    async with serving() as (service, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        wish.embedding_id = embedded.embedding.id
        sending.clear()
        async with raw_call(service, "Predict") as call:
            await call.write(wish.SerializeToString())
            await call.done_writing()
            await sending.wait()
            moved.delay()
            await call.read()
            await call.code()

    record = records[-1]
    assert record.facts.sent_bytes > 8 << 20
    assert late_stages(record) == ["send"]


class Served(FakeEngine):
    """Runs one thing at a time, each as soon as it may."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = FairSemaphore(1)
        self.may = asyncio.Event()
        self.may.set()

    async def decode(
        self, model: str, embedding: Embedding, prompts: PromptBatch, context: RequestContext
    ) -> DecoderOutput:
        async with self.gate.hold(context):
            await self.may.wait()
            return await super().decode(model, embedding, prompts, context)


async def test_waiting_for_a_turn_is_a_stage_of_its_own(
    moved: MovedTime, records: list[CallRecord]
) -> None:
    engine = Served()
    async with serving(engine=engine) as (_, stub):
        embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image()))
        engine.may.clear()
        records.clear()
        wish = pb.PredictRequest(embedding_id=embedded.embedding.id, prompts=[CLICK])
        calls = [asyncio.create_task(finish(stub.Predict(wish))) for _ in range(2)]
        await until(lambda: engine.gate.waiting == 1)
        moved.delay()
        engine.may.set()
        await asyncio.gather(*calls)

    assert sorted(name for call in records for name in late_stages(call)) == ["decode", "queue"]


def late_stages(call: CallRecord) -> list[str]:
    return [name for name, took in call.stages.items() if took > DELAY_S / 2]


async def test_who_waits_for_another_s_encode_is_told_so(
    moved: MovedTime, records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    engine = FakeEngine()
    boarded: list[None] = []
    join = delayed(SingleFlight.join, lambda: boarded.append(None))
    monkeypatch.setattr(SingleFlight, "join", join)
    async with serving(engine=engine) as (_, stub):
        engine.hold(go)
        wish = pb.EmbedRequest(image=pictures.image(40, 50))
        first = asyncio.create_task(finish(stub.Embed(wish)))
        await encodes_begun(engine, 1)
        second = asyncio.create_task(finish(stub.Embed(wish)))
        await until(lambda: len(boarded) == 2)
        moved.delay()
        go.set()
        await asyncio.gather(first, second)

    assert sorted(name for call in records for name in late_stages(call)) == ["encode", "join"]
    assert sorted(call.facts.cache for call in records) == ["joined", "miss"]


async def test_the_stages_of_a_call_add_up_to_its_time(
    records: list[CallRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The processor's time in this process, which what else runs on the machine is no part of.
    monkeypatch.setattr(access_log, "_now", time.process_time)
    methods = {"Embed", "Predict", "AutoMask"}
    named: set[str] = set()
    async with serving() as (_, stub):
        # In any single call the interpreter may do other work at any place: one of many counts.
        for size in range(40, 140):
            await call_each(stub, size)
            named |= {call.method for call in records if adds_up(call)}
            if named == methods:
                break

    assert {call.method for call in records} == methods
    assert named == methods


async def call_each(stub: SegmentationServiceStub, size: int) -> None:
    embedded = await stub.Embed(pb.EmbedRequest(image=pictures.image(size, 64)))
    of = {"embedding_id": embedded.embedding.id}
    await stub.Predict(pb.PredictRequest(**of, prompts=[CLICK]))
    options = pb.AutoMaskOptions(points_per_side=4)
    async for _ in stub.AutoMask(pb.AutoMaskRequest(**of, options=options)):
        pass


def adds_up(call: CallRecord) -> bool:
    """Whether stages sum up to the time of the call, and nearly all of it has a name."""
    difference = abs(sum(call.stages.values()) - call.seconds)
    return difference <= 0.0005 and call.stages["other"] <= max(0.05 * call.seconds, 0.0005)
