"""Run a Valkey or Redis Cluster on loopback, in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import signal
import sys
from typing import get_args

from harness.cluster.binaries import Flavour
from harness.cluster.cluster import MAXMEMORY, Cluster
from harness.foreground import in_foreground

_HELP = "Ctrl-C stops the cluster. To use it with a gateway:"


def main() -> int:
    """Return the exit status: zero after Ctrl-C or SIGTERM."""
    options = _parser().parse_args()
    return in_foreground(lambda: _serve(options))


def _serve(options: argparse.Namespace) -> None:
    """Run until a signal; further signals do not interrupt the shutdown."""
    with Cluster(**vars(options)) as cluster:
        print(_greeting(cluster), flush=True)
        try:
            signal.pause()
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)


def _greeting(cluster: Cluster) -> str:
    masters = cluster.masters
    lines = [f"{master.announced}  master" for master in masters]
    lines += [
        f"{replica.announced}  replica of {master.announced}"
        for master in masters
        for replica in cluster.replicas_of(master)
    ]
    nodes = ",".join(cluster.addresses)
    return "\n".join([*lines, _HELP, f"samserve serve --set cache.shared.nodes={nodes}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m harness.cluster", description=__doc__)
    parser.add_argument("--masters", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1, help="replicas of each master")
    parser.add_argument("--flavour", choices=get_args(Flavour), default="valkey")
    parser.add_argument(
        "--port",
        type=int,
        default=17000,
        help="port of the first node, the others follow; bus ports are 10000 above; 0: free ports",
    )
    parser.add_argument("--maxmemory", type=int, default=MAXMEMORY, help="bytes per node")
    return parser


if __name__ == "__main__":
    sys.exit(main())
