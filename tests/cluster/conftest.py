"""Clusters: a quiet one that tests share, and fresh ones for those that break something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.cluster.cluster import Cluster
from tests.cluster.clusters import Fresh, Shape, quiet

SHAPES: dict[str, Shape] = {"doomed_cluster": (3, 1), "single_masters": (3, 0)}


@pytest.fixture(scope="session")
def shared_cluster() -> Cluster:
    """Six nodes of Valkey that no test may harm."""
    return quiet()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared cluster, empty."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def nodes(cluster: Cluster) -> str:
    """The shared cluster, as the settings name it."""
    return ",".join(cluster.addresses)


@pytest.fixture(scope="session", autouse=True)
def fresh_clusters(request: pytest.FixtureRequest) -> Iterator[Fresh]:
    """Those that tests break, started while others run."""
    names = [name for item in request.session.items for name in getattr(item, "fixturenames", ())]
    fresh = Fresh(SHAPES[name] for name in names if name in SHAPES)
    fresh.begin()
    yield fresh
    fresh.close()


@pytest.fixture
def doomed_cluster(fresh_clusters: Fresh) -> Iterator[Cluster]:
    """Six nodes of its own for a test."""
    with_replicas = fresh_clusters.take(SHAPES["doomed_cluster"])
    yield with_replicas
    with_replicas.close()


@pytest.fixture
def single_masters(fresh_clusters: Fresh) -> Iterator[Cluster]:
    """Three masters without replicas, for one test."""
    without_replicas = fresh_clusters.take(SHAPES["single_masters"])
    yield without_replicas
    without_replicas.close()
