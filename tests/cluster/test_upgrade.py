"""Two versions of the value format over one cluster: a rolling upgrade, and the way back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import samserve
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests.cluster.gateways import PATIENTLY, gateway, local_gateway, until_gone
from tests.cluster.load import Clients
from tests.cluster.stores import SLOT
from tests.support.waiting import until

NUMBERS = range(8)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This package with another format of values."""
    folder = tmp_path_factory.mktemp("next")
    package = Path(samserve.__file__).parent
    shutil.copytree(package, folder / "samserve", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "samserve" / "stores" / "shared" / "value_format.py"
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
    # Of what it makes the next version keeps one in memory, and so reads the others again.
    small: dict[str, object] = {"store__capacity_bytes": SLOT, **PATIENTLY}
    async with (
        local_gateway(cluster) as old,
        local_gateway(cluster) as old2,
        gateway(cluster, package=next_version, **small) as new,
    ):
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
        # Both find what is not in their memory.
        encoded = await new.metric("samserve_engine_runs_total", network="encoder")
        for server in (old2, new):
            others = Clients([server], ids=dict(olds.ids))
            assert {await others.click(number) for number in NUMBERS} == {"found"}
            assert others.tally.unexpected == []
        assert await new.metric("samserve_engine_runs_total", network="encoder") == encoded
        # What one version deletes is deleted for both.
        for deleting, number in ((old2, 0), (new, 1)):
            await deleting.stub.DeleteEmbedding(
                pb.DeleteEmbeddingRequest(embedding_id=olds.ids[number])
            )
            for server in (old, old2, new):
                await until_gone(server, olds.ids[number])
        assert olds.tally.unexpected == news.tally.unexpected == []


@pytest.mark.slow
async def test_a_rolling_upgrade_under_load_fails_no_call(
    cluster: Cluster, next_version: Path
) -> None:
    async with local_gateway(cluster) as first:
        clients = Clients([first])
        for number in NUMBERS:
            await clients.embed(number)
        async with (
            gateway(cluster, package=next_version, **PATIENTLY) as newer,
            clients.working(NUMBERS, count=3) as tally,
        ):
            for serving in ([first, newer], [newer], [first]):  # and back again
                clients.gateways = serving
                enough = tally.counts["click"] + 10
                await until(lambda enough=enough: tally.counts["click"] >= enough)
        assert tally.unexpected == []
        assert tally.counts["STORE_UNAVAILABLE"] == 0
