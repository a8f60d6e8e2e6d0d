"""Run the whole system on loopback under load, and print its addresses.

``python -m monitoring.live [--seconds 60] [--faults] [--draw FOLDER] [--once]``
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import threading
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.foreground import in_foreground
from monitoring.live.draw import Window, pages
from monitoring.live.load import Tally, load
from monitoring.live.stack import Stack, running

PAGES = ("Overview", "Latency", "Cache", "Triton")
_WARM_UP_S = 15.0
# The rate interval of the queries: what is drawn begins when the first interval is complete.
_LEAD_S = 15.0
_CONSOLE = Console(highlight=False)


def main() -> int:
    """Return the exit status."""
    options = _parser().parse_args()
    return in_foreground(lambda: _observe(options))


def _observe(options: argparse.Namespace) -> None:
    _CONSOLE.print("Starting Valkey (6 nodes), Triton, a gateway and Prometheus ...")
    with running(prometheus_port=options.port) as stack:
        if options.draw is not None:
            _warm_up(stack, min(_WARM_UP_S, options.seconds), options.faults)
        _print_addresses(stack)
        since = time.time()
        with _CONSOLE.status(f"{options.seconds:g} s of load"):
            tally = asyncio.run(_drive(stack, options.seconds, options.faults))
        # Until the last calls have been scraped.
        time.sleep(2)
        _summary(stack, tally)
        if options.draw is not None:
            lead = min(_LEAD_S, options.seconds / 2)
            window = Window(since + lead, since + options.seconds)
            for path in pages(stack.prometheus, window, options.draw, PAGES):
                _CONSOLE.print(f"  {path}")
        if not options.once:
            _CONSOLE.print("Everything keeps running, without load; press Ctrl-C to stop.")
            threading.Event().wait()


def _warm_up(stack: Stack, seconds: float, faults: bool) -> None:
    """Run load, then restart Prometheus with an empty history, which has no cold start in it."""
    with _CONSOLE.status(f"{seconds:g} s of warm-up"):
        asyncio.run(_drive(stack, seconds, faults))
    stack.prometheus.kill()
    stack.prometheus.start()


async def _drive(stack: Stack, seconds: float, faults: bool) -> Tally:
    async with load(stack.gateway.target, faults=faults) as clients:
        await clients.run(seconds)
        return clients.tally


def _print_addresses(stack: Stack) -> None:
    table = Table("Service", "Address", box=None, pad_edge=False)
    table.add_row("Prometheus (graphs, alerts, targets)", stack.prometheus.url)
    table.add_row("gateway, gRPC API", stack.gateway.target)
    table.add_row("gateway, metrics", f"{stack.gateway.url}/metrics")
    table.add_row("dashboards, to import into Grafana", "helm/samserve/files/dashboards/*.json")
    table.add_row("runbook", "docs/runbook.md")
    table.add_row("logs", str(stack.folder))
    _CONSOLE.print(table)


_SUMMARY = (
    ("calls", "sum by (grpc_method) (samserve_call_seconds_count)", "{:.0f}"),
    ("p50", "histogram_quantile(0.5, sum by (le, grpc_method) (samserve_call_seconds_bucket))", ""),
    (
        "p99",
        "histogram_quantile(0.99, sum by (le, grpc_method) (samserve_call_seconds_bucket))",
        "",
    ),
)


def _summary(stack: Stack, tally: Tally) -> None:
    """Print the calls as Prometheus has them, and their status codes as seen by the clients."""
    columns = [
        {
            series["metric"]["grpc_method"]: float(series["value"][1])
            for series in stack.prometheus.query(expr)
        }
        for _, expr, _ in _SUMMARY
    ]
    table = Table(
        "RPC", *(name for name, _, _ in _SUMMARY), "slowest stage", "status codes", box=None
    )
    for method in columns[0]:
        cells = [
            form.format(column[method]) if form else f"{column[method] * 1e3:.0f} ms"
            for column, (_, _, form) in zip(columns, _SUMMARY, strict=True)
        ]
        codes = " ".join(
            f"{code} {count}" for (of, code), count in sorted(tally.items()) if of == method
        )
        table.add_row(method, *cells, _slowest(stack, method), codes)
    _CONSOLE.print(table)
    alerts = [
        f"{alert['labels']['alertname']} ({alert['state']})" for alert in stack.prometheus.alerts()
    ]
    _CONSOLE.print(f"Alerts: {', '.join(alerts) or 'none'}")
    _CONSOLE.print(f"Traces: {len(stack.receiver.spans)} spans")


def _slowest(stack: Stack, method: str) -> str:
    series = stack.prometheus.query(
        f'topk(1, sum by (stage) (samserve_stage_seconds_sum{{grpc_method="{method}"}}))'
        f' / scalar(sum(samserve_stage_seconds_sum{{grpc_method="{method}"}}))'
    )
    return " ".join(f"{each['metric']['stage']} ({float(each['value'][1]):.0%})" for each in series)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m monitoring.live", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60, help="duration of the load")
    parser.add_argument(
        "--port", type=int, default=0, help="port of Prometheus; 0 chooses a free one"
    )
    parser.add_argument(
        "--faults", action="store_true", help="include faulty calls and a burst over the limit"
    )
    parser.add_argument(
        "--draw",
        type=Path,
        metavar="FOLDER",
        help=f"draw {', '.join(PAGES)} as PNG files into FOLDER; history starts after a warm-up",
    )
    parser.add_argument("--once", action="store_true", help="exit when the load ends")
    return parser


if __name__ == "__main__":
    sys.exit(main())
