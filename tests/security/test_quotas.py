"""Quotas: their accounting, and their enforcement for many clients of a real server."""

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
from samserve.cache.local.cache import LocalCache
from samserve.engines.fake import FakeEngine
from samserve.errors import EmbeddingNotFound, Overloaded, QuotaExceeded
from samserve.security.policy import parse_policy
from samserve.security.principal import Permission
from samserve.security.quotas import Quotas
from samserve.types import EmbeddingFacts, EmbeddingKey, Size, TensorSpec
from samserve.v1 import samserve_pb2 as pb
from samserve.v1 import samserve_pb2_grpc

from tests import sample_images
from tests.conftest import UNLIMITED, settings_with
from tests.rpc.errors import Failure, failure_of, read
from tests.security.credentials import KeyFile, bearer
from tests.support.clock import Clock
from tests.support.engines import SMALL_MODEL, BusyEngine, wait_for_encodes
from tests.support.waiting import until

TENANTS = ("ants", "bees", "cats", "dogs", "emus")
HIGH_LIMIT = {"max_concurrent_predict": 1000}
ROLES = [permission.value for permission in Permission]
Stub = samserve_pb2_grpc.SegmentationServiceStub


def quotas(policy: str, clock: Callable[[], float]) -> Quotas:
    parsed = parse_policy(f"version = 1\n{policy}".encode())
    return Quotas(lambda: parsed, clock)


def is_admitted(held: Quotas, tenant: str = "a", calls: str = "max_concurrent_embed") -> bool:
    try:
        with held.admit(calls, tenant, "Embed"):
            return True
    except QuotaExceeded:
        return False


def test_a_bucket_admits_its_burst_and_then_its_rate() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 4\nburst = 3", clock)

    assert [is_admitted(held) for _ in range(5)] == [True, True, True, False, False]
    clock.now += 0.25
    assert [is_admitted(held) for _ in range(2)] == [True, False]
    # After any time without calls, at most the burst is admitted.
    clock.now += 1000
    assert [is_admitted(held) for _ in range(4)] == [True, True, True, False]


def test_the_retry_delay_is_exact() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 4", clock)
    while is_admitted(held):
        pass

    with pytest.raises(QuotaExceeded) as rejected, held.admit("max_concurrent_embed", "a", "Embed"):
        pass

    assert rejected.value.retry_after_s == pytest.approx(0.25)
    clock.now += (rejected.value.retry_after_s or 0) * 0.99
    assert not is_admitted(held)
    clock.now += (rejected.value.retry_after_s or 0) * 0.02
    assert is_admitted(held)


def test_a_rejected_call_takes_no_token() -> None:
    clock = Clock()
    held = quotas(
        "[server]\nrequests_per_s = 1\nburst = 5\n[quotas.default]\nrequests_per_s = 1\nburst = 2",
        clock,
    )

    assert [is_admitted(held, "a") for _ in range(10)].count(True) == 2
    assert [is_admitted(held, "b") for _ in range(10)].count(True) == 2
    assert [is_admitted(held, "c") for _ in range(10)].count(True) == 1
    with pytest.raises(QuotaExceeded) as rejected, held.admit("max_concurrent_embed", "d", "Embed"):
        pass
    assert rejected.value.subject == "server"
    # Calls that the server's rate rejected took no token of the tenant.
    clock.now += 2
    assert [is_admitted(held, "d") for _ in range(3)] == [True, True, False]


def test_concurrent_calls_are_counted_by_tenant_and_quota() -> None:
    held = quotas("[quotas.default]\nmax_concurrent_embed = 2\nmax_concurrent_predict = 1", Clock())

    with (
        held.admit("max_concurrent_embed", "a", "Embed"),
        held.admit("max_concurrent_embed", "a", "Embed"),
    ):
        assert not is_admitted(held, "a", "max_concurrent_embed")
        assert is_admitted(held, "a", "max_concurrent_predict")
        assert is_admitted(held, "b", "max_concurrent_embed")
        assert is_admitted(held, "a", "max_concurrent_other")
    assert is_admitted(held, "a", "max_concurrent_embed")


def test_only_idle_tenants_are_removed() -> None:
    clock = Clock()
    held = quotas("[quotas.default]\nrequests_per_s = 1\nburst = 1", clock)
    for number in range(10_000):
        assert is_admitted(held, f"t{number}")

    # Ten thousand tenants are active: a new one is rejected, and no active one is reset.
    assert not is_admitted(held, "one more")
    assert not is_admitted(held, "t5")
    clock.now += 1.0
    assert is_admitted(held, "one more")
    assert len(held._usage) == 1


def test_a_reduced_burst_applies_at_once() -> None:
    clock = Clock()
    policies = [
        parse_policy(f"version = 1\n[quotas.default]\nrequests_per_s = 1\nburst = {n}".encode())
        for n in (1000, 2)
    ]
    held = Quotas(lambda: policies[0], clock)
    for _ in range(900):
        assert is_admitted(held)
    policies.pop(0)

    assert not is_admitted(held)
    clock.now += 1.0
    assert is_admitted(held)


Guarded = Callable[..., AbstractAsyncContextManager[tuple[Running, dict[str, Any], list[Stub]]]]


@pytest.fixture
def guarded(key_file: KeyFile, tmp_path: Path) -> Guarded:
    """Start a server with a policy; yield it, the metadata of each tenant, and client stubs."""

    @asynccontextmanager
    async def run(
        policy: str = "", engine: FakeEngine | None = None, *, clients: int = 1, **more: Any
    ) -> AsyncIterator[tuple[Running, dict[str, Any], list[Stub]]]:
        policy_file = tmp_path / "policy.toml"
        policy_file.write_text(f"version = 1\n{policy}")
        tenants = {tenant: bearer(key_file.add(tenant, *ROLES)) for tenant in TENANTS}
        auth = {"api_keys_file": key_file.path, "policy_file": policy_file}
        settings = settings_with(auth=auth, log={"level": "error"}, **more)
        async with running(settings, engine=engine) as service, AsyncExitStack() as stack:
            # One connection per client.
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


async def count_admitted(stub: Stub, metadata: Any) -> int:
    """Call until the first rejection, and return the number of admitted calls."""
    count = 0
    while True:
        try:
            await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            if read(error).reason != "QUOTA_EXCEEDED":
                raise
            return count
        count += 1


async def exhaust_quotas(tenants: dict[str, Any], clients: list[Stub]) -> dict[str, int]:
    """Let all clients call until they are rejected; return the admitted calls by tenant."""
    counts = await asyncio.gather(
        *(count_admitted(stub, tenants[TENANTS[n % 5]]) for n, stub in enumerate(clients))
    )
    return {name: sum(counts[n::5]) for n, name in enumerate(TENANTS)}


async def test_rates_hold_for_200_clients_of_5_tenants(guarded: Guarded, clock: Clock) -> None:
    """Each tenant is admitted its burst and then its rate, independently of the others."""
    rates = dict(zip(TENANTS, (20, 30, 40, 50, 60), strict=True))
    policy = "\n".join(
        f"[quotas.{name}]\nrequests_per_s = {rate}\nburst = {rate}\n"
        f'[tenants.{name}]\nquota = "{name}"'
        for name, rate in rates.items()
    )
    async with guarded(policy, clients=200) as (_, tenants, clients):
        burst = await exhaust_quotas(tenants, clients)
        clock.now += 0.5
        half_a_second = await exhaust_quotas(tenants, clients)

    assert burst == rates
    assert half_a_second == {name: rate / 2 for name, rate in rates.items()}


async def test_the_rate_of_the_server_holds(guarded: Guarded, clock: Clock) -> None:
    policy = "[server]\nrequests_per_s = 60\nburst = 60"
    async with guarded(policy, clients=10) as (_, tenants, clients):
        admitted = []
        for waited_s in (0.0, 0.5, 5.0):
            clock.now += waited_s
            admitted.append(sum((await exhaust_quotas(tenants, clients)).values()))

    assert admitted == [60, 30, 60]


@dataclass
class Embeds:
    """Embed calls of tenants: admitted calls by tenant, and the errors of the others."""

    tenants: dict[str, Any]
    admitted: Counter[str] = field(default_factory=Counter)
    rejected: list[Failure] = field(default_factory=list)

    async def call(self, stub: Stub, number: int, tenant: str) -> None:
        try:
            # Images differ: equal ones would share one encode.
            await stub.Embed(image_request(number), metadata=self.tenants[tenant])
            self.admitted[tenant] += 1
        except grpc.aio.AioRpcError as error:
            self.rejected.append(read(error))


async def test_concurrency_quotas_hold_for_200_clients_of_5_tenants(guarded: Guarded) -> None:
    """Each tenant gets exactly its number of slots, independently of the others."""
    limits = dict(zip(TENANTS, (1, 2, 3, 5, 8), strict=True))
    policy = "\n".join(
        f'[quotas.{name}]\nmax_concurrent_embed = {limit}\n[tenants.{name}]\nquota = "{name}"'
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
        await until(lambda: len(embeds.rejected) == 200 - sum(limits.values()))
        go.set()

    assert embeds.admitted == limits
    failure = embeds.rejected[0]
    assert (failure.reason, failure.metadata["quota"]) == ("QUOTA_EXCEEDED", "max_concurrent_embed")
    assert failure.quota_subject.startswith("tenant:")
    assert failure.retry_after_s


def image_request(number: int = 0, height: int = 8, width: int = 8) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=sample_images.image(height, width, seed=number))


async def embedded(stub: Stub, metadata: Any, number: int = 0) -> str:
    response: pb.EmbedResponse = await stub.Embed(image_request(number), metadata=metadata)
    return response.embedding.id


async def serve_under_load(guarded: Guarded, clients_of: dict[str, int], runs: int) -> BusyEngine:
    """Serve so many inferences while every client always waits for one; return the engine."""
    engine = BusyEngine(clients=sum(clients_of.values()))
    async with guarded("", engine, admission=HIGH_LIMIT, clients=8) as (_, tenants, channels):
        ids = {name: await embedded(channels[0], tenants[name]) for name in clients_of}
        engine.under_load = True

        async def keep_calling(stub: Stub, tenant: str) -> None:
            request = pb.PredictRequest(
                embedding_id=ids[tenant], prompts=[sample_images.point_prompt(1, 1)]
            )
            while engine.under_load:
                await stub.Predict(request, metadata=tenants[tenant])

        names = [tenant for tenant, count in clients_of.items() for _ in range(count)]
        async with asyncio.TaskGroup() as calls:
            for number, tenant in enumerate(names):
                calls.create_task(keep_calling(channels[number % 8], tenant))
            await until(lambda: len(engine.served) >= runs)
            engine.under_load = False
    return engine


async def test_the_wait_under_load_is_bounded_by_the_number_of_tenants(guarded: Guarded) -> None:
    """With n tenants, a call waits for at most n inferences: the running one, and one per other.

    With a service time of S, the only call of a tenant ends after at most (n + 1) S, its own
    inference included, whether the other tenants have one client or a thousand.
    """
    clients_of = {"ants": 60, **dict.fromkeys(TENANTS[1:], 1)}
    engine = await serve_under_load(guarded, clients_of, runs=100)

    # The load is real: calls of the first tenant wait for dozens of its own inferences.
    assert max(engine.waited_for["ants"][:20]) > 50
    for tenant in TENANTS[1:]:
        assert len(engine.waited_for[tenant]) >= 19
        assert max(engine.waited_for[tenant]) <= len(TENANTS), tenant


async def test_saturating_tenants_get_equal_shares(guarded: Guarded) -> None:
    """Of 40 clients most are of one tenant; each tenant gets a fifth of the inferences."""
    clients_of = {"ants": 24, **dict.fromkeys(TENANTS[1:], 4)}
    engine = await serve_under_load(guarded, clients_of, runs=100)

    assert engine.shares(slice(20, 100)) == dict.fromkeys(TENANTS, 16)


async def test_one_tenant_cannot_use_all_slots(guarded: Guarded) -> None:
    """Without quotas, one tenant gets three quarters of the slots; two tenants get 3/7 each."""
    engine, go = FakeEngine(model=SMALL_MODEL), asyncio.Event()
    slots = {"ants": 21, "bees": 6, "cats": 1}
    async with (
        guarded("", engine, admission={"max_concurrent_embed": 28}, clients=2) as (
            _,
            tenants,
            clients,
        ),
        asyncio.TaskGroup() as calls,
    ):
        engine.hold(go)
        embeds = Embeds(tenants)
        expected = 0
        for tenant, count in slots.items():
            for number in range(30):
                calls.create_task(embeds.call(clients[number % 2], number, tenant))
            expected += 30 - count
            await until(lambda count=expected: len(embeds.rejected) == count)
        go.set()

    assert embeds.admitted == slots
    assert {failure.reason for failure in embeds.rejected} == {"OVERLOADED"}


async def test_pixels_and_prompts_of_a_request_have_quotas(guarded: Guarded) -> None:
    policy = "[quotas.default]\nmax_image_megapixels = 0.002\nmax_prompts = 2"
    engine = FakeEngine()
    async with guarded(policy, engine) as (_, tenants, (stub,)):
        metadata = tenants["ants"]
        small, large = (image_request(0, *size) for size in ((40, 50), (40, 51)))
        embedded_ = await stub.Embed(small, metadata=metadata)
        limits = (await stub.ListModels(pb.ListModelsRequest(), metadata=metadata)).limits
        begun = dict(engine.counts)
        too_many = pb.PredictRequest(
            embedding_id=embedded_.embedding.id, prompts=[sample_images.point_prompt(1, 1)] * 3
        )
        failures = {
            "max_image_megapixels": await failure_of(stub.Embed(large, metadata=metadata)),
            "max_prompts": await failure_of(stub.Predict(too_many, metadata=metadata)),
        }

    assert (limits.max_image_pixels, limits.max_prompts) == (2000, 2)
    assert dict(engine.counts) == begun
    for name, failure in failures.items():
        assert_quota(failure, name)
        assert failure.retry_after_s is None


def assert_quota(failure: Failure, name: str) -> None:
    """Check that this quota of the tenant ants is exhausted."""
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (failure.reason, failure.metadata["quota"]) == ("QUOTA_EXCEEDED", name)
    assert failure.quota_subject == "tenant:ants"


async def test_max_cached_bytes_evicts_only_the_tenants_own_embeddings(guarded: Guarded) -> None:
    slot = 2 << 20
    policy = f"[quotas.default]\nmax_cached_bytes = {3 * slot}"
    async with guarded(policy) as (service, tenants, (stub,)):
        other = await embedded(stub, tenants["bees"])
        ids = []
        # Image 0 is used again, so that it is not the least recently used.
        for number in (0, 1, 2, 0, 3, 4):
            ids.append(await embedded(stub, tenants["ants"], number))

        cached = [await is_cached(stub, id_, tenants["ants"]) for id_ in ids]
        assert cached == [True, False, False, True, True, True]
        assert await is_cached(stub, other, tenants["bees"])
        assert service.cache.stats().bytes == 4 * slot


async def test_a_full_cache_evicts_from_the_tenant_with_the_most_bytes(guarded: Guarded) -> None:
    """Without quotas, a tenant with fewer bytes than another loses no embeddings to it."""
    slot = 2 << 20
    cache = {"local": {"capacity_bytes": 6 * slot}}
    async with guarded("", cache=cache) as (_, tenants, (stub,)):
        others = {name: await embedded(stub, tenants[name]) for name in TENANTS[1:4]}
        for number in range(12):
            last = await embedded(stub, tenants["ants"], number)

        assert await is_cached(stub, last, tenants["ants"])
        for name, embedding_id in others.items():
            assert await is_cached(stub, embedding_id, tenants[name]), name


async def test_embeddings_of_tenants_with_fewer_bytes_are_not_evicted() -> None:
    """If all embeddings of larger tenants are in use, their calls are rejected instead."""
    spec = (TensorSpec("t", np.dtype(np.uint8), (4096,)),)
    cache = LocalCache(6 * 4096, 60)

    async def put(tenant: str, number: int) -> EmbeddingKey:
        key = EmbeddingKey(tenant, str(number))
        facts = EmbeddingFacts(Size(1, 1), "m", "d")
        async with cache.publish(await cache.reserve(key, facts, spec)):
            return key

    small = await put("small", 0)
    middle = [await put("middle", number) for number in range(2)]
    async with AsyncExitStack() as held:
        for number in range(3):
            await held.enter_async_context(cache.lease(await put("most", number)))
        with pytest.raises(Overloaded):
            await put("most", 3)
        # Nothing of the small tenant is evicted; its new embedding evicts one of a larger tenant.
        await put("small", 1)

    assert await exists(cache, small)
    assert [await exists(cache, key) for key in middle] == [False, True]


async def exists(cache: LocalCache, key: EmbeddingKey) -> bool:
    try:
        async with cache.lease(key):
            return True
    except EmbeddingNotFound:
        return False


async def is_cached(stub: Stub, embedding_id: str, metadata: Any) -> bool:
    request = pb.PredictRequest(
        embedding_id=embedding_id, prompts=[sample_images.point_prompt(1, 1)]
    )
    try:
        await stub.Predict(request, metadata=metadata)
    except grpc.aio.AioRpcError as error:
        if read(error).reason != "EMBEDDING_NOT_FOUND":
            raise
        return False
    return True


async def test_max_cached_bytes_in_use_rejects_a_call_before_any_work(guarded: Guarded) -> None:
    policy = f"[quotas.default]\nmax_cached_bytes = {2 << 20}"
    engine = FakeEngine()
    async with guarded(policy, engine) as (_, tenants, (stub,)):
        go = asyncio.Event()
        engine.hold(go)
        first = stub.Embed(image_request(), metadata=tenants["ants"])
        await wait_for_encodes(engine, 1)
        # Not an image: the call is rejected before the image is read.
        invalid = pb.EmbedRequest(image=pb.Image(encoded=b"nothing"))
        failure = await failure_of(stub.Embed(invalid, metadata=tenants["ants"]))
        go.set()
        await first

    assert_quota(failure, "max_cached_bytes")
    assert failure.retry_after_s
