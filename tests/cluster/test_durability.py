"""What has to be so before an embedding is called durable."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
import structlog
from prometheus_client import CollectorRegistry
from samserve.errors import StoreUnavailable
from samserve.settings import CacheSettings
from samserve.stores.shared import value_format
from samserve.stores.shared.diagnosis import diagnose
from samserve.stores.shared.redis.credentials import open_cache_credentials
from samserve.stores.shared.store import Outcome, Presence
from samserve.telemetry.metrics import Metrics

from harness.cluster import forming
from harness.cluster.cluster import MAXMEMORY, Cluster
from harness.cluster.node import Node
from tests.cluster.stores import FACTS, PATIENT, Gateway, key, store_over, tensors

ROOT = Path(__file__).parents[2]
A = key("a" * 64)
# No replica confirms that is paused, however long it is waited for.
HASTY: dict[str, object] = {"durable_s": 0.2}
WRITTEN = Outcome(Presence.STORED, same=True)


async def put(gateway: Gateway, *, durable: bool = False) -> Outcome:
    data = value_format.encode(gateway.cache.name(A), FACTS, tensors(1.0))
    return await gateway.cache.put(A, data, 60, durable=durable)


async def lack(gateway: Gateway) -> str:
    """Ask for what is there to be durable, in both ways; gives why it is not, empty if it is."""
    reasons = set()
    for asked in (put(gateway, durable=True), gateway.cache.renew(A, 60, durable=True)):
        try:
            await asked
        except StoreUnavailable as error:
            reasons.add(error.message)
        else:
            reasons.add("")
    assert len(reasons) == 1, reasons
    return reasons.pop()


def test_the_nodes_of_tests_have_the_settings_that_the_documentation_recommends() -> None:
    text = (ROOT / "docs" / "cache.md").read_text()
    _, _, section = text.partition("## Settings of the nodes")
    lines = section.split("```")[1].strip().splitlines()
    recommended = dict(line.partition("#")[0].split() for line in lines)
    given = forming.directives("valkey", 1, 1, 2, MAXMEMORY)

    assert {"appendonly", "cluster-allow-reads-when-down"} <= recommended.keys()
    # How much memory there is differs.
    recommended["maxmemory"] = str(MAXMEMORY)
    assert {name: str(given[name]) for name in recommended} == recommended


@contextmanager
def paused(nodes: tuple[Node, ...]) -> Iterator[None]:
    for node in nodes:
        node.stop_process()
    try:
        yield
    finally:
        for node in nodes:
            node.resume()


async def test_what_is_there_already_is_confirmed_by_a_replica_too(doomed_cluster: Cluster) -> None:
    cluster, nodes = doomed_cluster, ",".join(doomed_cluster.addresses)
    async with store_over(nodes) as patient, store_over(nodes, **HASTY) as hasty:
        owner = cluster.owner_of(patient.cache.name(A))
        with paused(cluster.replicas_of(owner)):
            assert await put(patient) == WRITTEN
            # Its connections have written nothing that a replica has, or has not.
            assert "no replica" in await lack(hasty)
        assert await lack(patient) == ""
        assert await put(patient, durable=True) == WRITTEN


async def diagnosed(cluster: Cluster) -> Mapping[str, str]:
    """What `samserve doctor` finds that durable Embeds lack, by master."""
    settings = CacheSettings(nodes=",".join(cluster.addresses), **PATIENT)  # type: ignore[arg-type]
    metrics = Metrics(CollectorRegistry()).cache
    found = await diagnose(settings, open_cache_credentials(settings), metrics)
    assert set(found.nodes.values()) == {""}
    return found.not_durable


async def test_an_owner_that_would_come_back_empty_makes_nothing_durable(
    doomed_cluster: Cluster,
) -> None:
    cluster, nodes = doomed_cluster, ",".join(doomed_cluster.addresses)
    async with (
        store_over(nodes) as one,
        store_over(nodes, durable_needs="replica") as trusting,
    ):
        assert await put(one, durable=True) == WRITTEN
        owner = cluster.owner_of(one.cache.name(A))
        owner.command("CONFIG", "SET", "appendonly", "no")
        with structlog.testing.capture_logs() as log:
            assert "appendonly no" in await lack(one)
        assert [each["kind"] for each in log] == ["not durable"]
        assert await lack(trusting) == ""
        lacks = await diagnosed(cluster)
        assert "appendonly no" in lacks.pop(owner.announced)
        assert list(lacks.values()) == ["", ""]
        owner.command("ACL", "SETUSER", "default", "-waitaof")
        assert "+waitaof" in await lack(one)
        owner.command("ACL", "SETUSER", "default", "+waitaof", "-wait")
        assert "+wait " in await lack(one)
        owner.command("ACL", "SETUSER", "default", "+wait")
        # What is asked of it besides is done.
        assert (await put(one), await one.get(A)) == (WRITTEN, 1.0)

        owner.command("CONFIG", "SET", "appendonly", "yes")
        assert await lack(one) == ""


@pytest.mark.slow
async def test_of_servers_without_waitaof_each_write_must_reach_the_disk() -> None:
    options = {"masters": 1, "replicas": 1, "flavour": "redis"}
    with Cluster(**options) as cluster:  # type: ignore[arg-type]
        async with store_over(",".join(cluster.addresses)) as one:
            assert await put(one, durable=True) == WRITTEN
            assert await lack(one) == ""
            (owner,) = cluster.masters
            owner.command("CONFIG", "SET", "appendfsync", "everysec")
            assert "appendfsync always" in await lack(one)
            owner.command("CONFIG", "SET", "appendonly", "no")
            assert "appendonly no" in await lack(one)
            owner.command("ACL", "SETUSER", "default", "-config")
            assert "+config|get" in await lack(one)
