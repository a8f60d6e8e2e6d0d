"""Fixtures of other folders that tests of pods use: a cluster, and credentials."""

from tests.cluster.conftest import cluster, shared_cluster
from tests.security.conftest import authority, key_file

__all__ = ["authority", "cluster", "key_file", "shared_cluster"]
