"""Run Prometheus on loopback, in the foreground, until Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from harness.errors import HarnessError
from harness.prometheus.server import PrometheusServer


def main() -> int:
    """Return the exit status: zero if it was ended by Ctrl-C or SIGTERM."""
    options = _parser().parse_args()
    server = PrometheusServer(
        _jobs(options.target),
        rules=options.rules,
        interval_s=options.interval,
        port=options.port,
        log=Path("/dev/stderr"),
    )
    # SIGINT too: a shell starts what runs in the background with it ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        with contextlib.suppress(KeyboardInterrupt), server:
            print(f"Prometheus answers on {server.url}; Ctrl-C ends it.", flush=True)
            return server.wait()
    except HarnessError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _jobs(targets: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    jobs = defaultdict(list)
    for job, address in targets:
        jobs[job].append(address)
    return dict(jobs)


def _target(text: str) -> tuple[str, str]:
    job, found, address = text.partition("=")
    if not (job and found and address):
        raise argparse.ArgumentTypeError(f"{text!r} is not JOB=HOST:PORT")
    return job, address


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m harness.prometheus", description=__doc__)
    parser.add_argument(
        "--target",
        type=_target,
        action="append",
        required=True,
        metavar="JOB=HOST:PORT",
        help="what to scrape; may be given several times: samserve=127.0.0.1:8081",
    )
    parser.add_argument(
        "--rules",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="a file of rules; may be given several times",
    )
    parser.add_argument("--interval", type=float, default=1.0, help="seconds between scrapes")
    parser.add_argument("--port", type=int, default=9090)
    return parser


if __name__ == "__main__":
    sys.exit(main())
