"""Two versions of the value format over one cluster: a rolling upgrade, and the way back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
import samserve
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests.cluster.gateways import gateway
from tests.cluster.load import Clients

NUMBERS = range(8)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package with another format of values."""
    folder = tmp_path_factory.mktemp("next")
    package = Path(samserve.__file__).parent
    shutil.copytree(package, folder / "samserve", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "samserve" / "stores" / "cluster" / "values.py"
    text = file.read_text()
    assert text.count("\nFORMAT = 1\n") == 1
    file.write_text(text.replace("\nFORMAT = 1\n", "\nFORMAT = 2\n"))
    return folder


def fields(cluster: Cluster) -> set[tuple[bytes, bytes]]:
    """Every value that the cluster holds, by its key and format."""
    return {
        (key, field)
        for master in cluster.masters
        for key in cluster.client(master).scan_iter()
        for field in cluster.client(master).hkeys(key)
        if field.startswith(b"v")
    }


async def test_each_version_finds_its_own_and_harms_none_of_the_others(
    cluster: Cluster, next_version: Path
) -> None:
    async with gateway(cluster) as old, gateway(cluster, package=next_version) as new:
        olds, news = Clients([old]), Clients([new])
        for number in NUMBERS:
            await olds.embed(number)
        written = fields(cluster)
        assert {field for _, field in written} == {b"v1"}

        # An id of the other version is a miss, which is counted and healed.
        news.ids = dict(olds.ids)
        assert {await news.click(number) for number in NUMBERS} == {"EMBEDDING_NOT_FOUND"}
        found = await new.metric("samserve_cache_requests_total", tier="shared", result="format")
        assert found >= len(NUMBERS)
        for number in NUMBERS:
            embedding = await news.embed(number)
            assert embedding is not None
            assert (embedding.stored, embedding.cached) == (pb.STORED_SHARED, True)

        assert written < fields(cluster)
        assert len(fields(cluster)) == 2 * len(NUMBERS)
        # Gateways without anything in memory, of both versions.
        async with gateway(cluster) as old2, gateway(cluster, package=next_version) as new2:
            for server in (old2, new2):
                others = Clients([server], ids=dict(olds.ids))
                assert {await others.click(number) for number in NUMBERS} == {"found"}
                assert others.tally.unexpected == []
            # What one version deletes is deleted for both.
            for deleting, number in ((old2, 0), (new2, 1)):
                await deleting.stub.DeleteEmbedding(
                    pb.DeleteEmbeddingRequest(embedding_id=olds.ids[number])
                )
                await asyncio.sleep(0.6)
                for server in (old, new, old2, new2):
                    clients = Clients([server], ids=dict(olds.ids))
                    assert await clicks_without_healing(clients, number) == "EMBEDDING_NOT_FOUND"
        assert olds.tally.unexpected == news.tally.unexpected == []


async def clicks_without_healing(clients: Clients, number: int) -> str:
    healing, clients.heal = clients.heal, _nothing  # type: ignore[method-assign]
    try:
        return await clients.click(number)
    finally:
        clients.heal = healing  # type: ignore[method-assign]


async def _nothing(number: int) -> None:
    """Leave it as it is."""


@pytest.mark.slow
async def test_a_rolling_upgrade_under_load_fails_no_call(
    cluster: Cluster, next_version: Path
) -> None:
    async with gateway(cluster) as first:
        clients = Clients([first])
        for number in NUMBERS:
            await clients.embed(number)
        async with (
            gateway(cluster, package=next_version) as newer,
            clients.working(NUMBERS, count=3) as tally,
        ):
            for serving in ([first, newer], [newer], [first]):  # and back again
                clients.gateways = serving
                await asyncio.sleep(1)
        assert tally.unexpected == []
        assert tally.counts["STORE_UNAVAILABLE"] == 0
        assert tally.counts["click"] > 20
