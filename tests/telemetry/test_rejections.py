"""Metrics of quotas and of rejected calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from samserve.app import Running
from samserve.engines.fake import FakeEngine
from samserve.security.policy import parse_policy
from samserve.security.principal import Permission
from samserve.security.quotas import Quotas
from samserve.telemetry.metrics.process import ServerMetrics
from samserve.v1 import samserve_pb2 as pb
from samserve.v1.samserve_pb2_grpc import SegmentationServiceStub

from tests import sample_images
from tests.conftest import serving, settings_with
from tests.security.credentials import KeyFile, bearer
from tests.support.engines import SMALL_MODEL, wait_for_encodes
from tests.support.waiting import until
from tests.telemetry.scraping import values

ROLES = [permission.value for permission in Permission]
USED = "samserve_quota_used_ratio"
# A rate so low that no token is added during a test.
NEVER = 1e-6
# One embedding of the fake engine.
SLOT = 2 << 20


@dataclass
class Guarded:
    """A server with a policy, whose encoder waits for `go`, and the metadata of tenants."""

    service: Running
    stub: SegmentationServiceStub
    engine: FakeEngine
    go: asyncio.Event
    tenants: dict[str, Any]

    async def begin(self, call: Any, encodes: int) -> asyncio.Future[Any]:
        """Start a call, and wait until so many encodes have begun."""
        task = asyncio.ensure_future(self._result(call))
        await wait_for_encodes(self.engine, encodes)
        return task

    @staticmethod
    async def _result(call: Any) -> Any:
        return await call

    async def used(self, count: int) -> dict[tuple[str, ...], float]:
        """Scrape the used ratios once so many calls are in flight."""
        name = "samserve_inflight_requests"
        await until(lambda: sum(values(self.service, name, "grpc_method").values()) == count)
        found = values(self.service, USED, "tenant", "quota")
        return {of: round(ratio, 3) for of, ratio in found.items()}


@asynccontextmanager
async def guarded(tmp_path: Path, policy: str, **sections: Any) -> AsyncIterator[Guarded]:
    keys, policy_file = KeyFile(tmp_path / "keys.toml"), tmp_path / "policy.toml"
    policy_file.write_text(f"version = 1\n{policy}")
    tenants = {name: bearer(keys.add(name, *ROLES)) for name in ("ants", "bees", "cats", "dogs")}
    auth = {"api_keys_file": keys.path, "policy_file": policy_file}
    engine, go = FakeEngine(model=SMALL_MODEL), asyncio.Event()
    settings = settings_with(auth=auth, **sections)
    async with serving(settings, engine=engine) as (service, stub):
        engine.hold(go)
        yield Guarded(service, stub, engine, go, tenants)


def embed(seed: int = 0) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=sample_images.image(seed=seed))


async def test_the_used_ratio_counts_concurrent_calls(tmp_path: Path) -> None:
    policy = (
        "[quotas.small]\nmax_concurrent_embed = 2\nmax_concurrent_predict = 8\n"
        "[quotas.default]\nmax_concurrent_embed = 5\n"
        '[tenants.ants]\nquota = "small"\n[tenants.bees]'
    )
    async with guarded(tmp_path, policy) as at:
        stub, tenants = at.stub, at.tenants
        calls = [await at.begin(stub.Embed(embed(), metadata=tenants["ants"]), 1)]
        predict = pb.PredictRequest(
            image=sample_images.image(seed=1), prompts=[sample_images.point_prompt()]
        )
        calls.append(await at.begin(stub.Predict(predict, metadata=tenants["ants"]), 2))
        one = await at.used(2)
        for number, tenant in enumerate(("ants", "bees", "dogs", "dogs", "cats"), 3):
            embedding = stub.Embed(embed(seed=number), metadata=tenants[tenant])
            calls.append(await at.begin(embedding, number))
        several = await at.used(7)
        at.go.set()
        await asyncio.gather(*calls)
        none = await at.used(0)

    embed_quota, predict_quota = "max_concurrent_embed", "max_concurrent_predict"
    assert one == {("ants", embed_quota): 0.5, ("ants", predict_quota): 0.125}
    assert several == {
        ("ants", embed_quota): 1.0,
        ("ants", predict_quota): 0.125,
        ("bees", embed_quota): 0.2,
        # The highest ratio of the tenants that the policy does not name.
        ("(others)", embed_quota): 0.4,
    }
    assert none == {}


async def test_the_used_ratio_counts_the_rate(tmp_path: Path) -> None:
    policy = (
        f"[server]\nrequests_per_s = {NEVER}\nburst = 10\n"
        f"[quotas.rare]\nrequests_per_s = {NEVER}\nburst = 4\n"
        '[tenants.ants]\nquota = "rare"'
    )
    async with guarded(tmp_path, policy) as at:
        used = []
        for tenant in ("ants", "bees", "ants", "ants", "ants", "ants"):
            with suppress(grpc.aio.AioRpcError):
                await at.stub.ListModels(pb.ListModelsRequest(), metadata=at.tenants[tenant])
            used.append(await at.used(0))
        rejected = values(at.service, "samserve_rejected_total", "grpc_method", "kind")

    rate = "requests_per_s"
    # A rejected call takes no token, and a tenant without a quota has no series.
    assert used == [
        {("ants", rate): ants, ("(server)", rate): server}
        for ants, server in ((0.25, 0.1), (0.25, 0.2), (0.5, 0.3), (0.75, 0.4), (1, 0.5), (1, 0.5))
    ]
    assert rejected == {("ListModels", rate): 1}


def quotas(policy: str) -> tuple[Quotas, CollectorRegistry]:
    parsed = parse_policy(f"version = 1\n{policy}".encode())
    held, registry = Quotas(lambda: parsed, lambda: 100.0), CollectorRegistry()
    ServerMetrics(registry).register_quotas(held.used_ratios)
    return held, registry


def test_at_most_a_hundred_tenants_have_their_own_series() -> None:
    named = "\n".join(f"[tenants.n{number}]" for number in range(150))
    held, registry = quotas(
        "[quotas.default]\nmax_concurrent_embed = 4\nrequests_per_s = 1\nburst = 8\n" + named
    )
    with ExitStack() as stack:
        for number in range(150):
            for name in ("n", "unnamed"):
                stack.enter_context(held.admit("max_concurrent_embed", f"{name}{number}", "Embed"))
        (family,) = [each for each in registry.collect() if each.name == USED]

    series = [(each.labels["tenant"], each.labels["quota"]) for each in family.samples]
    assert len(series) == len(set(series))
    assert {tenant for tenant, _ in series} == {
        *(f"n{number}" for number in range(100)),
        "(others)",
    }
    assert {(each.labels["quota"], each.value) for each in family.samples} == {
        ("max_concurrent_embed", 0.25),
        ("requests_per_s", 0.125),
    }


@pytest.mark.parametrize("tenant", ["server", "others"])
def test_a_tenant_named_like_a_reserved_label_has_its_own_series(tenant: str) -> None:
    held, registry = quotas(
        f"[server]\nrequests_per_s = 1\nburst = 8\n[tenants.{tenant}]\n"
        "[quotas.default]\nrequests_per_s = 1\nburst = 4"
    )
    for name in (tenant, *["other"] * 2):
        with held.admit("max_concurrent_embed", name, "Embed"):
            pass
    (family,) = [each for each in registry.collect() if each.name == USED]

    assert sorted(each.value for each in family.samples) == [0.25, 0.375, 0.5]


async def test_rejected_calls_are_counted_by_what_was_exhausted(tmp_path: Path) -> None:
    policy = (
        "[quotas.default]\nmax_concurrent_predict = 1\nmax_prompts = 2\n"
        "max_image_megapixels = 0.01\n"
        f"max_cached_bytes = {SLOT}"
    )
    sections = {
        "admission": {
            "max_concurrent_embed": 1,
            "max_in_flight_request_bytes": 100_000,
            "max_prefetches": 1,
        },
        "cache": {"local": {"capacity_bytes": 2 * SLOT}},
    }
    async with guarded(tmp_path, policy, **sections) as at:
        stub = at.stub

        async def reject(call: Any) -> None:
            with pytest.raises(grpc.aio.AioRpcError) as rejected:
                await call
            assert rejected.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        ants, bees, cats, dogs = at.tenants.values()
        prompts = [sample_images.point_prompt()]
        first = await at.begin(stub.Embed(embed(), metadata=ants), 1)
        await reject(stub.Embed(embed(1), metadata=bees))
        of_image = pb.PredictRequest(image=sample_images.image(seed=1), prompts=prompts)
        await reject(stub.Predict(of_image, metadata=ants))
        of_image.image.encoded = sample_images.png(110, 100)
        await reject(stub.Predict(of_image, metadata=bees))
        await reject(stub.Predict(pb.PredictRequest(prompts=prompts * 3), metadata=bees))
        of_image.image.encoded = sample_images.png(seed=2)
        second = await at.begin(stub.Predict(of_image, metadata=bees), 2)
        await reject(stub.Predict(of_image, metadata=bees))
        # The cache has two slots, and both are in use.
        await reject(
            stub.Predict(
                pb.PredictRequest(image=sample_images.image(), prompts=prompts), metadata=cats
            )
        )
        of_image.image.encoded = bytes(100_000)
        await reject(stub.Predict(of_image, metadata=dogs))
        at.go.set()
        await asyncio.gather(first, second)
        await at.used(0)
        rejected = values(at.service, "samserve_rejected_total", "grpc_method", "kind")
        errors = values(at.service, "samserve_errors_total", "grpc_method", "reason")

    assert rejected == {
        ("Embed", "calls"): 1,
        ("Predict", "max_cached_bytes"): 1,
        ("Predict", "max_image_megapixels"): 1,
        ("Predict", "max_prompts"): 1,
        ("Predict", "max_concurrent_predict"): 1,
        ("Predict", "memory"): 1,
        ("Predict", "request_bytes"): 1,
    }
    assert errors == {
        ("Embed", "OVERLOADED"): 1,
        ("Predict", "QUOTA_EXCEEDED"): 4,
        ("Predict", "OVERLOADED"): 2,
    }
