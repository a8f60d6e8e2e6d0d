"""Quotas: what they count, and that they hold for many clients of a real server."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from samserve import app
from samserve.app import Running, running
from samserve.engines.fake import FakeEngine
from samserve.errors import EmbeddingNotFound, Overloaded, QuotaExceeded
from samserve.security.policy import parse_policy
from samserve.security.principal import Permission
from samserve.security.quotas import Quotas
from samserve.stores.local.store import MemoryStore
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests import pictures
from tests.conftest import UNLIMITED, settings_with
from tests.rpc.errors import Failure, failure_of, read
from tests.security.credentials import KeyFile, bearer
from tests.support.clock import Clock
from tests.support.engines import SMALL_MODEL, BusyEngine, encodes_begun
from tests.support.waiting import until

TENANTS = ("ants", "bees", "cats", "dogs", "emus")
PLENTY = {"predict": 1000}
ROLES = [permission.value for permission in Permission]
Stub = samserve_pb2_grpc.SegmentationServiceStub


def quotas(policy: str, clock: Callable[[], float]) -> Quotas:
    parsed = parse_policy(f"version = 1\n{policy}".encode())
    return Quotas(lambda: parsed, clock)


def passes(held: Quotas, tenant: str = "a", calls: str = "embed") -> bool:
    try:
        with held.admit(calls, tenant, "Embed"):
            return True
    except QuotaExceeded:
        return False


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 4\nburst = 3", clock)

    assert [passes(held) for _ in range(5)] == [True, True, True, False, False]
    clock.now += 0.25
    assert [passes(held) for _ in range(2)] == [True, False]
    # However long nobody calls, no more than the burst is there.
    clock.now += 1000
    assert [passes(held) for _ in range(4)] == [True, True, True, False]


def test_the_wait_that_is_told_is_long_enough_and_no_longer() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 4", clock)
    while passes(held):
        pass

    with pytest.raises(QuotaExceeded) as refused, held.admit("embed", "a", "Embed"):
        pass

    assert refused.value.retry_after_s == pytest.approx(0.25)
    clock.now += (refused.value.retry_after_s or 0) * 0.99
    assert not passes(held)
    clock.now += (refused.value.retry_after_s or 0) * 0.02
    assert passes(held)


def test_a_tenant_that_is_refused_takes_nothing_from_the_server() -> None:
    clock = Clock()
    held = quotas(
        "[server]\nrequests_per_s = 1\nburst = 5\n[quotas.default]\nrequests_per_s = 1\nburst = 2",
        clock,
    )

    assert [passes(held, "a") for _ in range(10)].count(True) == 2
    assert [passes(held, "b") for _ in range(10)].count(True) == 2
    assert [passes(held, "c") for _ in range(10)].count(True) == 1
    with pytest.raises(QuotaExceeded) as refused, held.admit("embed", "d", "Embed"):
        pass
    assert refused.value.subject == "server"
    # What the server refused has not cost the tenant a token.
    clock.now += 2
    assert [passes(held, "d") for _ in range(3)] == [True, True, False]


def test_concurrent_calls_are_counted_by_tenant_and_method() -> None:
    held = quotas("[quotas.default]\nembed = 2\npredict = 1", Clock())

    with held.admit("embed", "a", "Embed"), held.admit("embed", "a", "Embed"):
        assert not passes(held, "a", "embed")
        assert passes(held, "a", "predict")
        assert passes(held, "b", "embed")
        assert passes(held, "a", "other")
    assert passes(held, "a", "embed")


def test_tenants_are_forgotten_when_they_have_used_nothing() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 1\nburst = 1", clock)
    for number in range(10_000):
        assert passes(held, f"t{number}")

    # Ten thousand are active: a new one has to wait, and none of the old ones is made new.
    assert not passes(held, "one more")
    assert not passes(held, "t5")
    clock.now += 1.0
    assert passes(held, "one more")
    assert len(held._uses) == 1


def test_a_smaller_burst_holds_at_once() -> None:
    clock = Clock()
    policies = [
        parse_policy(f"version = 1\n[quotas.default]\nrequests_per_s = 1\nburst = {n}".encode())
        for n in (1000, 2)
    ]
    held = Quotas(lambda: policies[0], clock)
    for _ in range(900):
        assert passes(held)
    policies.pop(0)

    assert not passes(held)
    clock.now += 1.0
    assert passes(held)


Guarded = Callable[..., AbstractAsyncContextManager[tuple[Running, dict[str, Any], list[Stub]]]]


@pytest.fixture
def guarded(key_file: KeyFile, tmp_path: Path) -> Guarded:
    """Makes a server with a policy, the metadata of each tenant's calls, and clients of it."""

    @asynccontextmanager
    async def run(
        policy: str = "", engine: FakeEngine | None = None, *, clients: int = 1, **more: Any
    ) -> AsyncIterator[tuple[Running, dict[str, Any], list[Stub]]]:
        policy_file = tmp_path / "policy.toml"
        policy_file.write_text(f"version = 1\n{policy}")
        tenants = {tenant: bearer(key_file.add(tenant, *ROLES)) for tenant in TENANTS}
        auth = {"keys_file": key_file.path, "policy_file": policy_file}
        settings = settings_with(auth=auth, log={"level": "error"}, **more)
        async with running(settings, engine=engine) as service, AsyncExitStack() as stack:
            # A connection each.
            channels = [
                await stack.enter_async_context(
                    grpc.aio.insecure_channel(service.address, options=UNLIMITED)
                )
                for _ in range(clients)
            ]
            await asyncio.gather(*(channel.channel_ready() for channel in channels))
            yield service, tenants, [Stub(channel) for channel in channels]

    return run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the quotas of every server that starts in the test."""
    clock = Clock()
    monkeypatch.setattr(app, "Quotas", lambda policy: Quotas(policy, clock))
    return clock


async def answered(stub: Stub, metadata: Any) -> int:
    """Call until the first refusal, and tell how many calls were answered."""
    count = 0
    while True:
        try:
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if read(error).reason != "QUOTA_EXCEEDED":
                raise
            return count
        count += 1


async def all_insist(tenants: dict[str, Any], clients: list[Stub]) -> dict[str, int]:
    """Have all clients call as often as they are let, and tell what passed of each tenant."""
    counts = await asyncio.gather(
        *(answered(stub, tenants[TENANTS[n % 5]]) for n, stub in enumerate(clients))
    )
    return {name: sum(counts[n::5]) for n, name in enumerate(TENANTS)}


async def test_rates_hold_for_200_clients_of_5_tenants(guarded: Guarded, clock: Clock) -> None:
    """In any time, what passes is the burst and what the rate gives, whoever else calls."""
    rates = dict(zip(TENANTS, (20, 30, 40, 50, 60), strict=True))
    policy = "\n".join(
        f"[quotas.{name}]\nrequests_per_s = {rate}\nburst = {rate}\n"
        f'[tenants.{name}]\nquota = "{name}"'
        for name, rate in rates.items()
    )
    async with guarded(policy, clients=200) as (_, tenants, clients):
        burst = await all_insist(tenants, clients)
        clock.now += 0.5
        half_a_second = await all_insist(tenants, clients)

    assert burst == rates
    assert half_a_second == {name: rate / 2 for name, rate in rates.items()}


async def test_the_rate_of_the_whole_server_holds(guarded: Guarded, clock: Clock) -> None:
    policy = "[server]\nrequests_per_s = 60\nburst = 60"
    async with guarded(policy, clients=10) as (_, tenants, clients):
        passed = []
        for waited_s in (0.0, 0.5, 5.0):
            clock.now += waited_s
            passed.append(sum((await all_insist(tenants, clients)).values()))

    assert passed == [60, 30, 60]


@dataclass
class Embeds:
    """Embed calls of tenants: how many of each were answered, and why others were not."""

    tenants: dict[str, Any]
    passed: Counter[str] = field(default_factory=Counter)
    refused: list[Failure] = field(default_factory=list)

    async def call(self, stub: Stub, number: int, tenant: str) -> None:
        try:
            # Pictures differ: equal ones would share one encode.
            await stub.Embed(picture(number), metadata=self.tenants[tenant])
            self.passed[tenant] += 1
        except grpc.aio.AioRpcError as error:
            self.refused.append(read(error))


async def test_concurrency_holds_for_200_clients_of_5_tenants(guarded: Guarded) -> None:
    """Each tenant gets exactly its places, whoever else wants some."""
    limits = dict(zip(TENANTS, (1, 2, 3, 5, 8), strict=True))
    policy = "\n".join(
        f'[quotas.{name}]\nembed = {limit}\n[tenants.{name}]\nquota = "{name}"'
        for name, limit in limits.items()
    )
    engine, go = FakeEngine(model=SMALL_MODEL), asyncio.Event()
    async with (
        guarded(policy, engine, clients=200) as (_, tenants, clients),
        asyncio.TaskGroup() as calls,
    ):
        engine.hold(go)
        embeds = Embeds(tenants)
        for number, stub in enumerate(clients):
            calls.create_task(embeds.call(stub, number, TENANTS[number % 5]))
        await until(lambda: len(embeds.refused) == 200 - sum(limits.values()))
        go.set()

    assert embeds.passed == limits
    failure = embeds.refused[0]
    assert (failure.reason, failure.metadata["quota"]) == ("QUOTA_EXCEEDED", "embed")
    assert failure.quota_subject.startswith("tenant:")
    assert failure.retry_after_s


def picture(number: int = 0, height: int = 8, width: int = 8) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=pictures.image(height, width, seed=number))


async def embedded(stub: Stub, metadata: Any, number: int = 0) -> str:
    answer: pb.EmbedResponse = await stub.Embed(picture(number), metadata=metadata)
    return answer.embedding.id


async def serve_under_load(guarded: Guarded, clients_of: dict[str, int], runs: int) -> BusyEngine:
    """Serve so many runs while every client wants one all the time, and give the engine."""
    engine = BusyEngine(clients=sum(clients_of.values()))
    async with guarded("", engine, admission=PLENTY, clients=8) as (_, tenants, channels):
        ids = {name: await embedded(channels[0], tenants[name]) for name in clients_of}
        engine.under_load = True

        async def keep_clicking(stub: Stub, tenant: str) -> None:
            request = pb.PredictRequest(embedding_id=ids[tenant], prompts=[pictures.click(1, 1)])
            while engine.under_load:
                await stub.Predict(request, metadata=tenants[tenant])

        names = [tenant for tenant, count in clients_of.items() for _ in range(count)]
        async with asyncio.TaskGroup() as clicking:
            for number, tenant in enumerate(names):
                clicking.create_task(keep_clicking(channels[number % 8], tenant))
            await until(lambda: len(engine.served) >= runs)
            engine.under_load = False
    return engine


async def test_a_storm_makes_others_wait_for_no_more_than_their_share(guarded: Guarded) -> None:
    """With n tenants, a call waits for n runs at most: one of each other, and the one under way.

    So with a service time of S a tenant's only call is answered after (n + 1) S, its own run
    counted, whether the storm has one client or a thousand.
    """
    clients_of = {"ants": 60, **dict.fromkeys(TENANTS[1:], 1)}
    engine = await serve_under_load(guarded, clients_of, runs=100)

    # The storm is one: it waits for itself, scores of runs each time.
    assert max(engine.overtaken["ants"][:20]) > 50
    for tenant in TENANTS[1:]:
        assert len(engine.overtaken[tenant]) >= 19
        assert max(engine.overtaken[tenant]) <= len(TENANTS), tenant


async def test_tenants_that_all_want_more_get_equal_parts(guarded: Guarded) -> None:
    """40 clients, most of them of one tenant: each tenant gets a fifth of the runs."""
    clients_of = {"ants": 24, **dict.fromkeys(TENANTS[1:], 4)}
    engine = await serve_under_load(guarded, clients_of, runs=100)

    assert engine.shares(slice(20, 100)) == dict.fromkeys(TENANTS, 16)


async def test_a_storm_leaves_places_for_others(guarded: Guarded) -> None:
    """Without any quota, one tenant gets three quarters of the places, two get 3/7 each."""
    engine, go = FakeEngine(model=SMALL_MODEL), asyncio.Event()
    places = {"ants": 21, "bees": 6, "cats": 1}
    async with (
        guarded("", engine, admission={"embed": 28}, clients=2) as (_, tenants, clients),
        asyncio.TaskGroup() as calls,
    ):
        engine.hold(go)
        embeds = Embeds(tenants)
        expected = 0
        for tenant, count in places.items():
            for number in range(30):
                calls.create_task(embeds.call(clients[number % 2], number, tenant))
            expected += 30 - count
            await until(lambda count=expected: len(embeds.refused) == count)
        go.set()

    assert embeds.passed == places
    assert {failure.reason for failure in embeds.refused} == {"OVERLOADED"}


async def test_what_a_request_may_contain_is_a_quota_too(guarded: Guarded) -> None:
    policy = "[quotas.default]\nimage_megapixels = 0.002\nprompts = 2"
    engine = FakeEngine()
    async with guarded(policy, engine) as (_, tenants, (stub,)):
        metadata = tenants["ants"]
        small, large = (picture(0, *size) for size in ((40, 50), (40, 51)))
        embedded_ = await stub.Embed(small, metadata=metadata)
        limits = (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).limits
        begun = dict(engine.counts)
        too_many = pb.PredictRequest(
            embedding_id=embedded_.embedding.id, prompts=[pictures.click(1, 1)] * 3
        )
        refusals = {
            "image_megapixels": await failure_of(stub.Embed(large, metadata=metadata)),
            "prompts": await failure_of(stub.Predict(too_many, metadata=metadata)),
        }

    assert (limits.max_image_pixels, limits.max_prompts) == (2000, 2)
    assert dict(engine.counts) == begun
    for name, failure in refusals.items():
        assert_quota(failure, name)
        assert failure.retry_after_s is None


def assert_quota(failure: Failure, name: str) -> None:
    """See that a quota of this name is used up, of the tenant ants."""
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failure.reason, failure.metadata["quota"]) == ("QUOTA_EXCEEDED", name)
    assert failure.quota_subject == "tenant:ants"


async def test_stored_bytes_drive_out_the_tenants_own_oldest_only(guarded: Guarded) -> None:
    slot = 2 << 20
    policy = f"[quotas.default]\nstored_bytes = {3 * slot}"
    async with guarded(policy) as (service, tenants, (stub,)):
        other = await embedded(stub, tenants["bees"])
        ids = []
        # What is used again is not the oldest any more.
        for number in (0, 1, 2, 0, 3, 4):
            ids.append(await embedded(stub, tenants["ants"], number))

        there = [await known(stub, id_, tenants["ants"]) for id_ in ids]
        assert there == [True, False, False, True, True, True]
        assert await known(stub, other, tenants["bees"])
        assert service.store.stats().bytes == 4 * slot


async def test_a_flood_drives_out_its_own(guarded: Guarded) -> None:
    """Without any quota: who holds less than others loses nothing to them."""
    slot = 2 << 20
    store = {"capacity_bytes": 6 * slot}
    async with guarded("", store=store) as (_, tenants, (stub,)):
        others = {name: await embedded(stub, tenants[name]) for name in TENANTS[1:4]}
        for number in range(12):
            last = await embedded(stub, tenants["ants"], number)

        assert await known(stub, last, tenants["ants"])
        for name, embedding_id in others.items():
            assert await known(stub, embedding_id, tenants[name]), name


async def test_room_is_never_made_by_those_who_hold_less() -> None:
    """Where all that larger tenants hold is in use, the larger is refused, not the smaller hurt."""
    spec = (TensorSpec("t", np.dtype(np.uint8), (4096,)),)
    store = MemoryStore(6 * 4096, 60)

    async def put(tenant: str, number: int) -> EmbeddingKey:
        key = EmbeddingKey(tenant, str(number))
        facts = EmbeddingFacts(Size(1, 1), "m", "d")
        async with store.publish(await store.reserve(key, facts, spec)):
            return key

    small = await put("small", 0)
    middle = [await put("middle", number) for number in range(2)]
    async with AsyncExitStack() as held:
        for number in range(3):
            await held.enter_async_context(store.lease(await put("most", number)))
        with pytest.raises(Overloaded):
            await put("most", 3)
        # The small one makes room for nobody, and finds some at those who hold more.
        await put("small", 1)

    assert await there(store, small)
    assert [await there(store, key) for key in middle] == [False, True]


async def there(store: MemoryStore, key: EmbeddingKey) -> bool:
    try:
        async with store.lease(key):
            return True
    except EmbeddingNotFound:
        return False


async def known(stub: Stub, embedding_id: str, metadata: Any) -> bool:
    request = pb.PredictRequest(embedding_id=embedding_id, prompts=[pictures.click(1, 1)])
    try:
        await stub.Predict(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if read(error).reason != "EMBEDDING_NOT_FOUND":
            raise
        return False
    return True


async def test_stored_bytes_that_are_all_in_use_refuse_before_any_work(guarded: Guarded) -> None:
    policy = f"[quotas.default]\nstored_bytes = {2 << 20}"
    engine = FakeEngine()
    async with guarded(policy, engine) as (_, tenants, (stub,)):
        let_go = asyncio.Event()
        engine.hold(let_go)
        first = stub.Embed(picture(), metadata=tenants["ants"])
        await encodes_begun(engine, 1)
        # No image at all: it is refused before anything looks at it.
        nothing = pb.EmbedRequest(image=pb.Image(encoded=b"nothing"))
        failure = await failure_of(stub.Embed(nothing, metadata=tenants["ants"]))
        let_go.set()
        await first

    assert_quota(failure, "stored_bytes")
    assert failure.retry_after_s
