"""The conditions under which an embedding is durable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry
from samserve.cache.shared import value_format
from samserve.cache.shared.cache import Presence, PutResult
from samserve.cache.shared.diagnosis import diagnose
from samserve.cache.shared.redis.credentials import open_cache_credentials
from samserve.errors import CacheUnavailable
from samserve.settings import SharedCacheSettings
from samserve.telemetry.metrics import Metrics

from harness.cluster import forming
from harness.cluster.cluster import MAXMEMORY, Cluster
from harness.cluster.node import Node
from tests.cluster.caches import FACTS, LONG_TIMEOUTS, GatewayCache, key, open_cache, tensors

ROOT = Path(__file__).parents[2]
A = key("a" * 64)
# A paused replica never confirms, so a long timeout would only delay the test.
SHORT_TIMEOUT: dict[str, object] = {"durability_timeout_s": 0.2}
WRITTEN = PutResult(Presence.STORED, own_value=True)


async def put(gateway: GatewayCache, *, durable: bool = False) -> PutResult:
    data = value_format.encode(gateway.shared.name(A), FACTS, tensors(1.0))
    return await gateway.shared.put(A, data, 60, durable=durable)


async def durability_error(gateway: GatewayCache) -> str:
    """Request durability by put and by renew; return why it fails, empty if it does not."""
    reasons = set()
    for call in (put(gateway, durable=True), gateway.shared.renew(A, 60, durable=True)):
        try:
            await call
        except CacheUnavailable as error:
            reasons.add(error.message)
        else:
            reasons.add("")
    assert len(reasons) == 1, reasons
    return reasons.pop()


def test_the_test_nodes_have_the_documented_settings() -> None:
    text = (ROOT / "docs" / "cache.md").read_text()
    _, _, section = text.partition("## Node configuration")
    lines = section.split("```")[1].strip().splitlines()
    recommended = dict(line.partition("#")[0].split() for line in lines)
    actual = forming.directives("valkey", 1, 1, 2, MAXMEMORY)

    assert {"appendonly", "cluster-allow-reads-when-down"} <= recommended.keys()
    # The memory limit differs.
    recommended["maxmemory"] = str(MAXMEMORY)
    assert {name: str(actual[name]) for name in recommended} == recommended


@contextmanager
def paused(nodes: tuple[Node, ...]) -> Iterator[None]:
    for node in nodes:
        node.stop_process()
    try:
        yield
    finally:
        for node in nodes:
            node.resume()


async def test_an_existing_value_is_confirmed_by_a_replica(disposable_cluster: Cluster) -> None:
    cluster, nodes = disposable_cluster, ",".join(disposable_cluster.addresses)
    async with open_cache(nodes) as patient, open_cache(nodes, **SHORT_TIMEOUT) as impatient:
        owner = cluster.owner_of(patient.shared.name(A))
        with paused(cluster.replicas_of(owner)):
            assert await put(patient) == WRITTEN
            # The value was written over other connections than those of this client.
            assert "no replica" in await durability_error(impatient)
        assert await durability_error(patient) == ""
        assert await put(patient, durable=True) == WRITTEN


async def diagnosed(cluster: Cluster) -> Mapping[str, str]:
    """Return the durability errors of `samserve doctor` by master."""
    settings = SharedCacheSettings(nodes=",".join(cluster.addresses), **LONG_TIMEOUTS)  # type: ignore[arg-type]
    metrics = Metrics(CollectorRegistry()).cache
    found = await diagnose(settings, open_cache_credentials(settings), metrics)
    assert set(found.nodes.values()) == {""}
    return found.durability_errors


async def test_nothing_is_durable_on_a_master_without_persistence(
    disposable_cluster: Cluster,
) -> None:
    cluster, nodes = disposable_cluster, ",".join(disposable_cluster.addresses)
    async with (
        open_cache(nodes) as one,
        open_cache(nodes, durability_level="replica") as trusting,
    ):
        assert await put(one, durable=True) == WRITTEN
        owner = cluster.owner_of(one.shared.name(A))
        owner.command("CONFIG", "SET", "appendonly", "no")
        with structlog.testing.capture_logs() as log:
            assert "appendonly no" in await durability_error(one)
        assert [each["kind"] for each in log] == ["not durable"]
        assert await durability_error(trusting) == ""
        errors = await diagnosed(cluster)
        assert "appendonly no" in errors.pop(owner.announced)
        assert list(errors.values()) == ["", ""]
        owner.command("ACL", "SETUSER", "default", "-waitaof")
        assert "+waitaof" in await durability_error(one)
        owner.command("ACL", "SETUSER", "default", "+waitaof", "-wait")
        assert "+wait " in await durability_error(one)
        owner.command("ACL", "SETUSER", "default", "+wait")
        # Calls without durability succeed.
        assert (await put(one), await one.get(A)) == (WRITTEN, 1.0)

        owner.command("CONFIG", "SET", "appendonly", "yes")
        assert await durability_error(one) == ""


@pytest.mark.slow
async def test_servers_without_waitaof_must_fsync_each_write() -> None:
    options = {"masters": 1, "replicas": 1, "flavour": "redis"}
    with Cluster(**options) as cluster:  # type: ignore[arg-type]
        async with open_cache(",".join(cluster.addresses)) as one:
            assert await put(one, durable=True) == WRITTEN
            assert await durability_error(one) == ""
            (owner,) = cluster.masters
            owner.command("CONFIG", "SET", "appendfsync", "everysec")
            assert "appendfsync always" in await durability_error(one)
            owner.command("CONFIG", "SET", "appendonly", "no")
            assert "appendonly no" in await durability_error(one)
            owner.command("ACL", "SETUSER", "default", "-config")
            assert "+config|get" in await durability_error(one)
