"""Clusters for tests: one that tests share, and single-use ones that are started in advance."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from harness.cluster.cluster import Cluster

Shape = tuple[int, int]
"""Masters, and replicas of each."""

# A new master serves no client for two seconds.  With two spare clusters, few tests wait for that.
_SPARE = 2
_MAX_CONCURRENT_STARTS = 4


@cache
def session_cluster() -> Cluster:
    """Return a cluster of six nodes that runs until the tests end; start it if necessary."""
    cluster = Cluster(masters=3, replicas=1)
    cluster.start()
    for node in cluster.nodes:
        # A busy machine must not cause a failover.  Only set after the cluster has formed, because
        # a long timeout delays that.
        node.command("CONFIG", "SET", "cluster-node-timeout", 30_000)
    return cluster


@contextmanager
def limited(cluster: Cluster, nbytes: int, policy: str) -> Iterator[None]:
    """Limit each node to *nbytes* more memory than it uses now, with an eviction *policy*."""
    names = ("maxmemory", "maxmemory-policy")
    servers = [cluster.client(node) for node in cluster.nodes]
    before = [server.config_get(*names) for server in servers]
    for server in servers:
        used = server.info("memory")["used_memory"]
        server.config_set("maxmemory-policy", policy, "maxmemory", used + nbytes)
    try:
        yield
    finally:
        for server, values in zip(servers, before, strict=True):
            server.config_set(*(part for name in names for part in (name, values[name])))


class ClusterPool:
    """Provides clusters that are used once; starts the next ones while tests run.

    *wanted* has one element per needed cluster, so that no cluster is started without need.
    """

    def __init__(self, wanted: Iterable[Shape]) -> None:
        self._wanted = Counter(wanted)
        self._starting: dict[Shape, deque[Future[Cluster]]] = {
            shape: deque() for shape in self._wanted
        }
        self._starters = ThreadPoolExecutor(
            _MAX_CONCURRENT_STARTS, thread_name_prefix="cluster-pool"
        )

    def begin(self) -> None:
        """Start the first clusters."""
        for shape in self._starting:
            self._start_next(shape)

    def take(self, shape: Shape) -> Cluster:
        """Return a cluster that is ready; the caller closes it."""
        self._start_next(shape)
        cluster = self._starting[shape].popleft().result()
        self._start_next(shape)
        return cluster

    def close(self) -> None:
        """Stop the clusters that were not used."""
        for starting in self._starting.values():
            for each in starting:
                if not each.cancel():
                    each.result().close()
        self._starters.shutdown()

    def _start_next(self, shape: Shape) -> None:
        starting = self._starting[shape]
        while self._wanted[shape] and len(starting) < _SPARE:
            self._wanted[shape] -= 1
            starting.append(self._starters.submit(_started, shape))


def _started(shape: Shape) -> Cluster:
    cluster = Cluster(*shape)
    cluster.start()
    return cluster
