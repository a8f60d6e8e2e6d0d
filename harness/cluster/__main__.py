"""Run a cluster of Valkey or Redis on loopback, in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import get_args

from harness.cluster.binaries import Flavour
from harness.cluster.cluster import MAXMEMORY, Cluster
from harness.cluster.errors import HarnessError

_HELP = "Ctrl-C ends the cluster. Point the gateway at it:"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def main() -> int:
    """Return the exit status: zero if it was ended by Ctrl-C or SIGTERM."""
    options = _parser().parse_args()
    # SIGINT too: a shell starts what runs in the background with it ignored.
    for number in _SIGNALS:
        signal.signal(number, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), _cluster(options) as cluster:
            print(_greeting(cluster), flush=True)
            _wait()
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _cluster(options: argparse.Namespace) -> Cluster:
    return Cluster(
        options.masters,
        options.replicas,
        options.flavour,
        maxmemory=options.maxmemory,
        port=options.port,
    )


def _wait() -> None:
    """Return at a signal, after which further ones do not disturb the end."""
    try:
        signal.pause()
    finally:
        for number in _SIGNALS:
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
    return "\n".join([*lines, _HELP, f"samserve serve --set cache.nodes={nodes}"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m harness.cluster", description=__doc__)
    parser.add_argument("--masters", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1, help="of each master")
    parser.add_argument("--flavour", choices=get_args(Flavour), default="valkey")
    parser.add_argument(
        "--port",
        type=int,
        default=17000,
        help="of the first node, the others follow; the bus is 10000 above; 0: free ones",
    )
    parser.add_argument("--maxmemory", type=int, default=MAXMEMORY, help="bytes for each node")
    return parser


if __name__ == "__main__":
    sys.exit(main())
