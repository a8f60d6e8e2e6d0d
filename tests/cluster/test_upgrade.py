"""Two versions of the value format in one cluster: a rolling upgrade, and the rollback."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import samserve
from samserve.v1 import samserve_pb2 as pb

from harness.cluster.cluster import Cluster
from tests.cluster.caches import SLOT
from tests.cluster.gateways import LONG_TIMEOUT_OPTIONS, gateway, local_gateway, until_not_found
from tests.cluster.load import Clients
from tests.support.waiting import until

NUMBERS = range(8)


@pytest.fixture(scope="module")
def next_version(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this package with another value format."""
    folder = tmp_path_factory.mktemp("next")
    package = Path(samserve.__file__).parent
    shutil.copytree(package, folder / "samserve", ignore=shutil.ignore_patterns("__pycache__"))
    file = folder / "samserve" / "cache" / "shared" / "value_format.py"
    text = file.read_text()
    assert text.count("\nFORMAT = 2\n") == 1
    file.write_text(text.replace("\nFORMAT = 2\n", "\nFORMAT = 3\n"))
    return folder


def fields(cluster: Cluster) -> set[tuple[bytes, bytes]]:
    """Return the key and format of every value in the cluster."""
    return {
        (key, field)
        for master in cluster.masters
        for key in cluster.client(master).scan_iter()
        for field in cluster.client(master).hkeys(key)
        if field.startswith(b"v")
    }


async def test_each_version_uses_its_own_values_and_keeps_those_of_others(
    cluster: Cluster, next_version: Path
) -> None:
    # The local tier of the next version holds one embedding, so it reads the others again.
    small: dict[str, object] = {"cache__local__capacity_bytes": SLOT, **LONG_TIMEOUT_OPTIONS}
    async with (
        local_gateway(cluster) as old,
        local_gateway(cluster) as old2,
        gateway(cluster, package=next_version, **small) as new,
    ):
        olds, news = Clients([old]), Clients([new])
        for number in NUMBERS:
            await olds.embed(number)
        written = fields(cluster)
        assert {field for _, field in written} == {b"v2"}

        # The id of a value of the other version is a miss, and is counted.
        news.ids = dict(olds.ids)
        assert {await news.predict(number) for number in NUMBERS} == {"EMBEDDING_NOT_FOUND"}
        mismatches = await new.metric(
            "samserve_cache_requests_total", tier="shared", result="format_mismatch"
        )
        assert mismatches >= len(NUMBERS)
        for number in NUMBERS:
            embedding = await news.embed(number)
            assert embedding is not None
            assert (embedding.stored, embedding.cached) == (pb.STORED_SHARED, True)

        assert written < fields(cluster)
        assert len(fields(cluster)) == 2 * len(NUMBERS)
        # Both find embeddings that are not in their local tier.
        encoded = await new.metric("samserve_engine_runs_total", network="encoder")
        for server in (old2, new):
            others = Clients([server], ids=dict(olds.ids))
            assert {await others.predict(number) for number in NUMBERS} == {"found"}
            assert others.tally.unexpected == []
        assert await new.metric("samserve_engine_runs_total", network="encoder") == encoded
        # A deletion by one version is valid for both.
        for deleting, number in ((old2, 0), (new, 1)):
            await deleting.stub.DeleteEmbedding(
                pb.DeleteEmbeddingRequest(embedding_id=olds.ids[number])
            )
            for server in (old, old2, new):
                await until_not_found(server, olds.ids[number])
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
            gateway(cluster, package=next_version, **LONG_TIMEOUT_OPTIONS) as newer,
            clients.working(NUMBERS, count=3) as tally,
        ):
            for serving in ([first, newer], [newer], [first]):  # and back again
                clients.gateways = serving
                enough = tally.counts["predict"] + 10
                await until(lambda enough=enough: tally.counts["predict"] >= enough)
        assert tally.unexpected == []
        assert tally.counts["CACHE_UNAVAILABLE"] == 0
