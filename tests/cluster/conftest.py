"""Clusters: a quiet one that tests share, and fresh ones for those that break something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.cluster.cluster import Cluster


@pytest.fixture(scope="session")
def shared_cluster() -> Iterator[Cluster]:
    """Six nodes of Valkey; nobody may harm them."""
    with Cluster(masters=3, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Cluster:
    """The shared cluster, empty."""
    shared_cluster.flush()
    return shared_cluster


@pytest.fixture
def doomed_cluster() -> Iterator[Cluster]:
    """Six nodes of its own for a test."""
    with Cluster(masters=3, replicas=1) as cluster:
        yield cluster


@pytest.fixture
def single_masters() -> Iterator[Cluster]:
    """Three masters without replicas."""
    with Cluster(masters=3, replicas=0) as cluster:
        yield cluster
