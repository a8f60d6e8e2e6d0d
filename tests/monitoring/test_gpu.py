"""What is asked about GPUs, of what a Triton with one has exported.

``gpu/*.txt`` was recorded from tritonserver 24.10 on a machine with an NVIDIA H200, before and
while a model of the Python backend multiplied matrices on it; only the GPU's name was changed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from harness.prometheus.server import PrometheusServer
from harness.triton.server import HOST
from monitoring.queries import Query, queries, substitute
from tests.monitoring.catalogue import LABELS

RECORDED = {path.stem: path.read_bytes() for path in Path(__file__).parent.glob("gpu/*.txt")}
QUERIES = [query for query in queries() if "nv_gpu_" in query.expr]


class _Recording(BaseHTTPRequestHandler):
    """What is scraped."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(RECORDED["busy"])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def prometheus() -> Iterator[PrometheusServer]:
    with ThreadingHTTPServer((HOST, 0), _Recording) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        address = f"{HOST}:{server.server_port}"
        with PrometheusServer({"triton": [address]}, interval_s=0.1) as prometheus:
            while not prometheus.query("nv_gpu_utilization"):
                time.sleep(0.05)
            yield prometheus
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: f"{query.dashboard}: {query.panel}")
def test_a_panel_about_gpus_is_answered(prometheus: PrometheusServer, query: Query) -> None:
    (series,) = prometheus.query(substitute(query.expr))

    assert series["metric"]["gpu_uuid"].startswith("GPU-")
    # Shares of one, and watts: as the card itself said at that moment, 100 %, 1.4 % and 693 W.
    low, high = (600, 700) if "power" in query.expr else (0.01, 1)
    assert low < float(series["value"][1]) <= high


def test_pages_ask_about_gpus() -> None:
    assert len(QUERIES) >= 4


@pytest.mark.parametrize("when", ["idle", "busy"])
def test_metrics_of_triton_are_as_the_catalogue_has_them(when: str) -> None:
    found = {
        sample.name.removesuffix("_total"): set(sample.labels)
        for family in text_string_to_metric_families(RECORDED[when].decode())
        for sample in family.samples
    }

    wanted = {name: labels for name, labels in LABELS.items() if name.startswith("nv_")}
    assert wanted
    assert {name: found.get(name) for name in wanted} == wanted
