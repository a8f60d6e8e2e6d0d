"""What metrics say of quotas, and of calls that are refused."""

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

from tests import pictures
from tests.conftest import serving, settings_with
from tests.security.credentials import KeyFile, bearer
from tests.support.engines import SMALL_MODEL, encodes_begun
from tests.support.waiting import until
from tests.telemetry.scraping import values

ROLES = [permission.value for permission in Permission]
USED = "samserve_quota_used_ratio"
# So little comes back that a test sees none of it.
NEVER = 1e-6
# One embedding of the fake engine.
SLOT = 2 << 20


@dataclass
class Guarded:
    """A server with a policy, whose encoder waits for `go`, and the metadata of tenants' calls."""

    service: Running
    stub: SegmentationServiceStub
    engine: FakeEngine
    go: asyncio.Event
    tenants: dict[str, Any]

    async def begin(self, call: Any, encodes: int) -> asyncio.Future[Any]:
        """Wait until a call's picture is the one that is being encoded after so many others."""
        task = asyncio.ensure_future(self._answer(call))
        await encodes_begun(self.engine, encodes)
        return task

    @staticmethod
    async def _answer(call: Any) -> Any:
        return await call

    async def used(self, count: int) -> dict[tuple[str, ...], float]:
        """Scrape, once so few calls are in flight."""
        name = "samserve_inflight_requests"
        await until(lambda: sum(values(self.service, name, "grpc_method").values()) == count)
        found = values(self.service, USED, "tenant", "quota")
        return {of: round(ratio, 3) for of, ratio in found.items()}


@asynccontextmanager
async def guarded(tmp_path: Path, policy: str, **sections: Any) -> AsyncIterator[Guarded]:
    keys, policy_file = KeyFile(tmp_path / "keys.toml"), tmp_path / "policy.toml"
    policy_file.write_text(f"version = 1\n{policy}")
    tenants = {name: bearer(keys.add(name, *ROLES)) for name in ("ants", "bees", "cats", "dogs")}
    auth = {"keys_file": keys.path, "policy_file": policy_file}
    engine, go = FakeEngine(model=SMALL_MODEL), asyncio.Event()
    settings = settings_with(auth=auth, **sections)
    async with serving(settings, engine=engine) as (service, stub):
        engine.hold(go)
        yield Guarded(service, stub, engine, go, tenants)


def embed(seed: int = 0) -> pb.EmbedRequest:
    return pb.EmbedRequest(image=pictures.image(seed=seed))


async def test_concurrent_calls_use_their_part_of_a_quota(tmp_path: Path) -> None:
    policy = (
        "[quotas.small]\nembed = 2\npredict = 8\n[quotas.default]\nembed = 5\n"
        '[tenants.ants]\nquota = "small"\n[tenants.bees]'
    )
    async with guarded(tmp_path, policy) as at:
        stub, tenants = at.stub, at.tenants
        calls = [await at.begin(stub.Embed(embed(), metadata=tenants["ants"]), 1)]
        click = pb.PredictRequest(image=pictures.image(seed=1), prompts=[pictures.click()])
        calls.append(await at.begin(stub.Predict(click, metadata=tenants["ants"]), 2))
        one = await at.used(2)
        for number, tenant in enumerate(("ants", "bees", "dogs", "dogs", "cats"), 3):
            embedding = stub.Embed(embed(seed=number), metadata=tenants[tenant])
            calls.append(await at.begin(embedding, number))
        several = await at.used(7)
        at.go.set()
        await asyncio.gather(*calls)
        none = await at.used(0)

    assert one == {("ants", "embed"): 0.5, ("ants", "predict"): 0.125}
    assert several == {
        ("ants", "embed"): 1.0,
        ("ants", "predict"): 0.125,
        ("bees", "embed"): 0.2,
        # Of those whom the policy does not name, the one counts that uses most.
        ("(others)", "embed"): 0.4,
    }
    assert none == {}


async def test_rates_are_used_by_the_call(tmp_path: Path) -> None:
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
        refused = values(at.service, "samserve_refusals_total", "grpc_method", "kind")

    rate = "requests_per_s"
    # Who is refused takes nothing, and who has no quota has no series.
    assert used == [
        {("ants", rate): ants, ("(server)", rate): server}
        for ants, server in ((0.25, 0.1), (0.25, 0.2), (0.5, 0.3), (0.75, 0.4), (1, 0.5), (1, 0.5))
    ]
    assert refused == {("ListModels", rate): 1}


def quotas(policy: str) -> tuple[Quotas, CollectorRegistry]:
    parsed = parse_policy(f"version = 1\n{policy}".encode())
    held, registry = Quotas(lambda: parsed, lambda: 100.0), CollectorRegistry()
    ServerMetrics(registry).register_quotas(held.used)
    return held, registry


def test_a_tenant_s_use_is_seen_under_its_own_name_for_a_hundred_of_them() -> None:
    named = "\n".join(f"[tenants.n{number}]" for number in range(150))
    held, registry = quotas(f"[quotas.default]\nembed = 4\nrequests_per_s = 1\nburst = 8\n{named}")
    with ExitStack() as stack:
        for number in range(150):
            for name in ("n", "unnamed"):
                stack.enter_context(held.admit("embed", f"{name}{number}", "Embed"))
        (family,) = [each for each in registry.collect() if each.name == USED]

    series = [(each.labels["tenant"], each.labels["quota"]) for each in family.samples]
    assert len(series) == len(set(series))
    assert {tenant for tenant, _ in series} == {
        *(f"n{number}" for number in range(100)),
        "(others)",
    }
    assert {(each.labels["quota"], each.value) for each in family.samples} == {
        ("embed", 0.25),
        ("requests_per_s", 0.125),
    }


@pytest.mark.parametrize("tenant", ["server", "others"])
def test_a_tenant_of_an_unlucky_name_is_seen_all_the_same(tenant: str) -> None:
    held, registry = quotas(
        f"[server]\nrequests_per_s = 1\nburst = 8\n[tenants.{tenant}]\n"
        "[quotas.default]\nrequests_per_s = 1\nburst = 4"
    )
    for name in (tenant, *["somebody"] * 2):
        with held.admit("embed", name, "Embed"):
            pass
    (family,) = [each for each in registry.collect() if each.name == USED]

    assert sorted(each.value for each in family.samples) == [0.25, 0.375, 0.5]


async def test_what_is_refused_is_counted_by_what_was_exhausted(tmp_path: Path) -> None:
    policy = (
        "[quotas.default]\npredict = 1\nprompts = 2\nimage_megapixels = 0.01\n"
        f"stored_bytes = {SLOT}"
    )
    sections = {
        "admission": {"embed": 1, "request_bytes": 100_000, "prefetch": 1},
        "store": {"capacity_bytes": 2 * SLOT},
    }
    async with guarded(tmp_path, policy, **sections) as at:
        stub = at.stub

        async def refuse(call: Any) -> None:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        ants, bees, cats, dogs = at.tenants.values()
        click = [pictures.click()]
        first = await at.begin(stub.Embed(embed(), metadata=ants), 1)
        await refuse(stub.Embed(embed(1), metadata=bees))
        of_image = pb.PredictRequest(image=pictures.image(seed=1), prompts=click)
        await refuse(stub.Predict(of_image, metadata=ants))
        of_image.image.encoded = pictures.png(110, 100)
        await refuse(stub.Predict(of_image, metadata=bees))
        await refuse(stub.Predict(pb.PredictRequest(prompts=click * 3), metadata=bees))
        of_image.image.encoded = pictures.png(seed=2)
        second = await at.begin(stub.Predict(of_image, metadata=bees), 2)
        await refuse(stub.Predict(of_image, metadata=bees))
        # Both places for embeddings are taken.
        await refuse(
            stub.Predict(pb.PredictRequest(image=pictures.image(), prompts=click), metadata=cats)
        )
        of_image.image.encoded = bytes(100_000)
        await refuse(stub.Predict(of_image, metadata=dogs))
        at.go.set()
        await asyncio.gather(first, second)
        await at.used(0)
        refused = values(at.service, "samserve_refusals_total", "grpc_method", "kind")
        errors = values(at.service, "samserve_errors_total", "grpc_method", "reason")

    assert refused == {
        ("Embed", "calls"): 1,
        ("Predict", "stored_bytes"): 1,
        ("Predict", "image_megapixels"): 1,
        ("Predict", "prompts"): 1,
        ("Predict", "predict"): 1,
        ("Predict", "memory"): 1,
        ("Predict", "request_bytes"): 1,
    }
    assert errors == {
        ("Embed", "OVERLOADED"): 1,
        ("Predict", "QUOTA_EXCEEDED"): 4,
        ("Predict", "OVERLOADED"): 2,
    }
