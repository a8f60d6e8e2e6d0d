"""Fixtures of clusters: one that tests share, and disposable ones for tests that damage them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.cluster.cluster import Cluster
from tests.cluster.clusters import ClusterPool, Shape, session_cluster

SHAPES: dict[str, Shape] = {"disposable_cluster": (3, 1), "disposable_masters": (3, 0)}


@pytest.fixture(scope="session")
def shared_cluster() -> Cluster:
    """Six Valkey nodes that no test may damage."""
    return session_cluster()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared cluster, empty."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def nodes(cluster: Cluster) -> str:
    """The addresses of the shared cluster, in the form of the setting."""
    return ",".join(cluster.addresses)


@pytest.fixture(scope="session", autouse=True)
def cluster_pool(request: pytest.FixtureRequest) -> Iterator[ClusterPool]:
    """Disposable clusters, which are started while other tests run."""
    names = [name for item in request.session.items for name in getattr(item, "fixturenames", ())]
    pool = ClusterPool(SHAPES[name] for name in names if name in SHAPES)
    pool.begin()
    yield pool
    pool.close()


@pytest.fixture
def disposable_cluster(cluster_pool: ClusterPool) -> Iterator[Cluster]:
    """Three masters with one replica each, for one test."""
    with_replicas = cluster_pool.take(SHAPES["disposable_cluster"])
    yield with_replicas
    with_replicas.close()


@pytest.fixture
def disposable_masters(cluster_pool: ClusterPool) -> Iterator[Cluster]:
    """Three masters without replicas, for one test."""
    without_replicas = cluster_pool.take(SHAPES["disposable_masters"])
    yield without_replicas
    without_replicas.close()
