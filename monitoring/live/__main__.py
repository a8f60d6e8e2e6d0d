"""Run everything on loopback under load, and say where to look.

``python -m monitoring.live [--seconds 60] [--draw FOLDER] [--once]``
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
_CONSOLE = Console(highlight=False)


def main() -> int:
    """Return the exit status."""
    options = _parser().parse_args()
    return in_foreground(lambda: _observe(options))


def _observe(options: argparse.Namespace) -> None:
    _CONSOLE.print("Starting Valkey (6 nodes), Triton, a gateway and Prometheus ...")
    with running(prometheus_port=options.port) as stack:
        _where(stack)
        since = time.time()
        with _CONSOLE.status(f"{options.seconds:g} s of load"):
            tally = asyncio.run(_drive(stack, options.seconds))
        # So that the last of it is scraped.
        time.sleep(2)
        _summary(stack, tally)
        if options.draw is not None:
            for path in pages(stack.prometheus, Window(since, time.time()), options.draw, PAGES):
                _CONSOLE.print(f"  {path}")
        if not options.once:
            _CONSOLE.print("All of it goes on to run, without load; Ctrl-C ends it.")
            threading.Event().wait()


async def _drive(stack: Stack, seconds: float) -> Tally:
    async with load(stack.gateway.target) as crowd:
        await crowd.run(seconds)
        return crowd.tally


def _where(stack: Stack) -> None:
    table = Table("What", "Where", box=None, pad_edge=False)
    table.add_row("Prometheus: graphs, alerts, targets", stack.prometheus.url)
    table.add_row("the gateway, for gRPC clients", stack.gateway.target)
    table.add_row("its metrics", f"{stack.gateway.url}/metrics")
    table.add_row("dashboards, for Grafana: Import", "helm/samserve/files/dashboards/*.json")
    table.add_row("what to do about an alert", "docs/runbook.md")
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
    """Print what Prometheus knows of the calls, and how they ended for their clients."""
    columns = [
        {
            series["metric"]["grpc_method"]: float(series["value"][1])
            for series in stack.prometheus.query(expr)
        }
        for _, expr, _ in _SUMMARY
    ]
    table = Table("RPC", *(name for name, _, _ in _SUMMARY), "most time in", "ended", box=None)
    for method in columns[0]:
        cells = [
            form.format(column[method]) if form else f"{column[method] * 1e3:.0f} ms"
            for column, (_, _, form) in zip(columns, _SUMMARY, strict=True)
        ]
        ends = " ".join(
            f"{code} {count}" for (of, code), count in sorted(tally.items()) if of == method
        )
        table.add_row(method, *cells, _slowest(stack, method), ends)
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
    parser.add_argument("--seconds", type=float, default=60, help="how long there is load")
    parser.add_argument("--port", type=int, default=0, help="Prometheus's; 0 chooses a free one")
    parser.add_argument(
        "--draw", type=Path, metavar="FOLDER", help=f"draw {', '.join(PAGES)} into PNG files there"
    )
    parser.add_argument("--once", action="store_true", help="end when the load is over")
    return parser


if __name__ == "__main__":
    sys.exit(main())
