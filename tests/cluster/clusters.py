"""Clusters for tests: a quiet one that all share, and fresh ones that are started in advance."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache

from harness.cluster.cluster import Cluster

Shape = tuple[int, int]
"""Masters, and replicas of each."""

# A new master serves no client for two seconds.  With two in advance, few tests wait for them.
_IN_ADVANCE = 2
_AT_ONCE = 4


@cache
def quiet() -> Cluster:
    """Start six nodes that run until the tests end, or give those that run."""
    cluster = Cluster(masters=3, replicas=1)
    cluster.start()
    for node in cluster.nodes:
        # On a busy machine they must not take each other for dead.  Not before they have met: with
        # this they would take longer for that.
        node.command("CONFIG", "SET", "cluster-node-timeout", 30_000)
    return cluster


@contextmanager
def limited(cluster: Cluster, nbytes: int, policy: str) -> Iterator[None]:
    """Let each node take so much more than it does now, and then do as *policy* says."""
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


class Fresh:
    """Hands out clusters of which each is used once; starts the next ones while tests run.

    *wanted* tells how many of each shape are needed at most, so that none is started in vain.
    """

    def __init__(self, wanted: Iterable[Shape]) -> None:
        self._wanted = Counter(wanted)
        self._starting: dict[Shape, deque[Future[Cluster]]] = {
            shape: deque() for shape in self._wanted
        }
        self._starters = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="fresh-cluster")

    def begin(self) -> None:
        """Start the first ones."""
        for shape in self._starting:
            self._start_next(shape)

    def take(self, shape: Shape) -> Cluster:
        """Give a cluster that is ready; the caller closes it."""
        self._start_next(shape)
        cluster = self._starting[shape].popleft().result()
        self._start_next(shape)
        return cluster

    def close(self) -> None:
        """End those that were not taken."""
        for starting in self._starting.values():
            for each in starting:
                if not each.cancel():
                    each.result().close()
        self._starters.shutdown()

    def _start_next(self, shape: Shape) -> None:
        starting = self._starting[shape]
        while self._wanted[shape] and len(starting) < _IN_ADVANCE:
            self._wanted[shape] -= 1
            starting.append(self._starters.submit(_started, shape))


def _started(shape: Shape) -> Cluster:
    cluster = Cluster(*shape)
    cluster.start()
    return cluster
